//! A driver that is not there yet when its registrar is, or goes while it is asked: it is waited for, and its registrar, which a
//! refusal would end, hears of nothing but the success.

use crate::NAME;
use crate::plugin::{Driver, Plugin};
use crate::world::{World, is_ready};

fn said_once(plugin: &Plugin) {
    assert_eq!(plugin.told(), [(true, String::new())]);
}

#[tokio::test]
async fn a_driver_whose_socket_comes_after_its_registrar_is_waited_for() {
    let world = World::new();
    let driver = Driver::serve(world.path("csi.sock"), NAME);
    let plugin = Plugin::serve(world.registration("a-reg.sock"), &driver);
    driver.crash();
    std::fs::remove_file(&driver.path).unwrap();
    let mut world = world.start();
    world.until(|| plugin.asked() == 1).await;
    let _driver = Driver::serve(driver.path.clone(), NAME);
    world.driver(NAME, is_ready).await;
    said_once(&plugin);
}

#[tokio::test]
async fn a_driver_whose_last_process_left_its_socket_is_waited_for() {
    let world = World::new();
    let driver = Driver::serve(world.path("csi.sock"), NAME);
    let plugin = Plugin::serve(world.registration("a-reg.sock"), &driver);
    driver.crash();
    let mut world = world.start();
    world.until(|| plugin.asked() == 1).await;
    let _driver = Driver::serve(driver.path.clone(), NAME);
    world.driver(NAME, is_ready).await;
    said_once(&plugin);
}

#[tokio::test]
async fn a_driver_that_ends_while_it_is_asked_is_asked_again() {
    let world = World::new();
    let driver = Driver::serve(world.path("csi.sock"), NAME);
    driver.hang("NodeGetInfo");
    let plugin = Plugin::serve(world.registration("a-reg.sock"), &driver);
    let mut world = world.start();
    world.until(|| driver.asked("NodeGetInfo") == 1).await;
    driver.crash();
    let _driver = Driver::serve(driver.path.clone(), NAME);
    world.driver(NAME, is_ready).await;
    said_once(&plugin);
}

#[tokio::test]
async fn a_driver_that_hangs_is_not_waited_for_when_another_takes_its_place() {
    let world = World::new();
    let old = Driver::serve(world.path("csi.sock"), NAME);
    old.hang("NodeGetInfo");
    let plugin = Plugin::serve(world.registration("a-reg.sock"), &old);
    let mut world = world.start();
    world.until(|| old.asked("NodeGetInfo") == 1).await;
    let _new = Driver::serve(old.path.clone(), NAME);
    // The old one has ten seconds to answer; this comes before they are over.
    world.driver(NAME, is_ready).await;
    said_once(&plugin);
}
