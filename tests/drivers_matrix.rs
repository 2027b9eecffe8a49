//! csi-driver-host-path with {file systems, block devices} × {one pod, two pods} × {volumed, the driver, both killed} between
//! each two calls (`support/matrix.rs`). `root_loop_matrix` has it with the bundled driver.

#![expect(
    clippy::expect_used,
    clippy::disallowed_methods,
    clippy::print_stdout,
    clippy::panic,
    reason = "a test: its helpers may fail loudly and start processes of their own"
)]

#[path = "support/foreign.rs"]
mod foreign;
#[path = "support/hostpath.rs"]
mod hostpath;
#[path = "support/matrix.rs"]
mod matrix;
mod support;

use std::path::PathBuf;

use foreign::{
    assert_same_arguments, block, claim_of, create_block_volume, create_volume, for_each, methods,
};
use hostpath::{Hostpath, NAME, Programs};
use matrix::{Case, Subject, Victim, assert_precious, cases, outlives};
use support::{Process, TestHost, loop_devices};

/// One volume, and the pods that use it.
struct World {
    real: Hostpath,
    case: Case,
    handle: String,
}

impl World {
    fn new(programs: &Programs, case: Case) -> (Self, Process, Process) {
        let real = Hostpath::with(programs.clone());
        let (driver, registrar) = (real.driver(&[]), real.registrar());
        let socket = real.socket("");
        let handle =
            if case.block { create_block_volume(&socket, "data") } else { create_volume(&socket, "data") };
        let claim = claim_of(NAME, "data", &handle);
        real.host.manifest("data.yaml", &if case.block { block(&claim) } else { claim });
        case.write_pods(&real.host);
        (Self { real, case, handle }, driver, registrar)
    }

    /// What a pod wrote is in the driver's hands.
    fn assert_kept(&self) {
        let data = self.real.data(&self.handle);
        assert_precious(&if self.case.block { data } else { data.join("file") });
    }
}

impl Subject for World {
    fn host(&self) -> &TestHost {
        &self.real.host
    }

    fn driver(&self) -> Process {
        self.real.driver(&[])
    }

    fn assert_shown(&self, pods: usize) {
        self.assert_kept();
        let [(_, staged, published)] = self.real.believes().try_into().expect("one volume");
        assert_eq!((staged.len(), published.len()), (1, pods), "{staged:?} {published:?}");
    }
}

fn comes_and_goes(programs: &Programs, case: &Case) {
    let (world, driver, _registrar) = World::new(programs, *case);
    let host = &world.real.host;
    let (_driver, _daemon) = outlives(case, &world, driver);
    world.real.assert_released();
    world.assert_kept();
    // The driver keeps one for a block volume until the volume is deleted (csi.md 9.3).
    assert_eq!(
        loop_devices(&host.path("driver")).len(),
        usize::from(case.block),
        "loop devices over the volume"
    );
    assert_eq!(loop_devices(&host.root), Vec::<PathBuf>::new(), "a loop device is left");
    let all = world.real.calls();
    assert_same_arguments(&all, &format!("{case:?}"));
    // A living daemon knows what it has done; one that died may ask for its last call again, and for no other.
    let repeated = all.len() - 2 - 2 * case.pods.len();
    assert!(repeated <= usize::from(case.victim != Victim::Driver), "{case:?}: {:?}", methods(&all));
    let unstaged = all.iter().position(|call| call.method == "NodeUnstageVolume").expect("it is unstaged");
    let unpublished = all.iter().rposition(|call| call.method == "NodeUnpublishVolume").expect("it is");
    assert!(unpublished < unstaged, "{:?}", methods(&all));
    assert!(all.iter().all(|call| call.error.is_empty()), "{all:#?}");
}

#[test]
fn whoever_is_killed_between_two_calls_a_file_system_comes_and_goes() {
    let test = "whoever_is_killed_between_two_calls_a_file_system_comes_and_goes";
    let Some(programs) = Programs::find(test) else { return };
    for_each(&cases(false, false), |case| comes_and_goes(&programs, case));
}

#[test]
fn whoever_is_killed_between_two_calls_a_block_device_comes_and_goes() {
    let test = "whoever_is_killed_between_two_calls_a_block_device_comes_and_goes";
    let Some(programs) = Programs::find(test) else { return };
    for_each(&cases(true, false), |case| comes_and_goes(&programs, case));
}
