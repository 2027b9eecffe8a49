use std::collections::VecDeque;
use std::sync::Mutex;
use std::sync::atomic::Ordering;

use super::fakes_tests::{FakeDriver, FakeHost};
use super::*;
use crate::csi::{Code, DriverEntry};
use crate::model::{
    DriverInfo, DriverOrigin, DriverState, EventKind, Plugin, PodIdentity, PodUid, Presence,
    PublicationStatus, Space, SpecName, VolumeHealth, VolumeStatus,
};

const HOUR: Duration = Duration::from_secs(3600);
const NAME: &str = "a.example.org";

/// A poller over a status and a driver that a test changes.
struct World {
    status: watch::Sender<Status>,
    drivers: watch::Sender<Arc<DriverSet>>,
    driver: Arc<FakeDriver>,
    host: Arc<FakeHost>,
    turns: Turns,
    health: watch::Receiver<Arc<HealthMap>>,
    events: Arc<Mutex<Vec<EventKind>>>,
    started: Instant,
    poller: Option<Poller>,
    tasks: JoinSet<()>,
}

impl World {
    fn new(capabilities: &[&str]) -> Self {
        let (status, now) = watch::channel(Status::default());
        let (drivers, set) = watch::channel(Arc::default());
        let events: Arc<Mutex<Vec<EventKind>>> = Arc::default();
        let told = Arc::clone(&events);
        let host = Arc::new(FakeHost::default());
        let turns = Turns::default();
        let parts = Parts {
            host: Arc::clone(&host) as Arc<dyn Host>,
            turns: turns.clone(),
            layout: Layout::new("/r"),
            ambient: Arc::new(Ambient::new(7, || 1000)),
            events: Events::new(move |event| told.lock().unwrap().push(event.kind)),
        };
        let (poller, health) = poller(parts, now, set);
        let world = Self {
            status,
            drivers,
            driver: Arc::new(FakeDriver::default()),
            host,
            turns,
            health,
            events,
            started: Instant::now(),
            poller: Some(poller),
            tasks: JoinSet::new(),
        };
        world.serve(&world.driver, capabilities, Connection::Ready);
        world
    }

    fn serve(&self, driver: &Arc<FakeDriver>, capabilities: &[&str], connection: Connection) {
        let has = |name: &str| capabilities.contains(&name);
        let info = DriverInfo {
            volume_stats: has("GET_VOLUME_STATS") || has("VOLUME_CONDITION"),
            volume_health: has("GET_VOLUME_HEALTH"),
            capabilities: capabilities.iter().map(|name| format!("node/{name}")).collect(),
            ..DriverInfo::default()
        };
        let state = DriverState {
            connection,
            info,
            endpoint: "/csi.sock".into(),
            origin: DriverOrigin::Configured,
            since: 0,
            unwell: None,
            standby: Vec::new(),
        };
        let entry = DriverEntry { state, client: Arc::clone(driver) as Arc<dyn Driver> };
        let drivers = [(DriverName::new(NAME).unwrap(), entry)].into();
        self.drivers.send_replace(Arc::new(DriverSet { drivers }));
    }

    fn run(&mut self) {
        let poller = self.poller.take().unwrap();
        self.tasks.spawn(poller.run(CancellationToken::new()));
    }

    /// Shows a volume as published for a pod; returns where.
    fn publish(&self, handle: &str, pod: &str) -> PublicationId {
        self.publish_with(handle, pod, |_, _| {})
    }

    fn publish_with(
        &self,
        handle: &str,
        pod: &str,
        change: impl FnOnce(&PublicationId, &mut PublicationStatus),
    ) -> PublicationId {
        let uid = PodUid::new(pod).unwrap();
        let id =
            PublicationId { pod: uid.clone(), plugin: Plugin::Csi, spec: SpecName::new(handle).unwrap() };
        let mut publication = PublicationStatus {
            pod: PodIdentity { uid, namespace: "d".into(), name: pod.into() },
            names: Vec::new(),
            path: format!("/r/{pod}/{handle}").into(),
            desired: "published",
            presence: Presence::Yes,
            not_a_mount_point: false,
            hold: None,
        };
        change(&id, &mut publication);
        self.status.send_modify(|status| {
            let volume = status.volumes.entry(key(handle)).or_insert_with(|| VolumeStatus {
                plugin: "kubernetes.io/csi",
                csi: Some((DriverName::new(NAME).unwrap(), handle.to_owned())),
                nfs: None,
                staging: Some((format!("/r/staging/{handle}").into(), Presence::Yes)),
                staging_not_a_mount_point: false,
                publications: BTreeMap::new(),
                released: Vec::new(),
                blocked: Vec::new(),
                in_progress: None,
                pending_change: None,
                events: VecDeque::new(),
                since: 0,
            });
            volume.publications.insert(id.clone(), Box::new(publication));
        });
        id
    }

    /// Waits until something is known; time runs by itself.
    async fn until(&mut self, wanted: impl Fn(&HealthMap) -> bool) -> Arc<HealthMap> {
        let known = tokio::time::timeout(HOUR, self.health.wait_for(|map| wanted(map))).await;
        Arc::clone(&known.expect("it does not come").unwrap())
    }

    async fn pass(&self, time: Duration) {
        tokio::time::sleep(time).await;
    }

    /// When a volume was asked about, since the start.
    fn asked(&self, volume: &str) -> Vec<Duration> {
        let calls = self.driver.calls().into_iter().filter(|(_, of, _)| of == volume);
        calls.map(|(.., at)| at - self.started).collect()
    }
}

fn key(handle: &str) -> VolumeKey {
    VolumeKey::csi(&DriverName::new(NAME).unwrap(), handle)
}

#[tokio::test(start_paused = true)]
async fn a_volume_is_asked_about_soon_and_then_once_a_minute() {
    let mut world = World::new(&["GET_VOLUME_STATS"]);
    let id = world.publish("v", "p");
    world.run();
    let known = world.until(|map| !map.is_empty()).await;
    assert_eq!(known[&id].bytes, Space { total: Some(100), used: Some(40), available: Some(60) });
    assert_eq!((known[&id].measured_at, &known[&id].error), (Some(1000), &None));
    world.pass(HOUR).await;
    let asked = world.asked("v");
    assert!((1..=5).contains(&asked[0].as_secs()), "{asked:?}");
    let pauses: BTreeSet<u64> = asked.windows(2).map(|two| (two[1] - two[0]).as_secs()).collect();
    assert!(*pauses.first().unwrap() >= 48 && *pauses.last().unwrap() <= 72, "{pauses:?}");
    assert!(pauses.len() > 10, "there is no jitter: {pauses:?}");
    assert!(world.host.0.lock().unwrap().is_empty(), "the driver tells it");
}

#[tokio::test(start_paused = true)]
async fn with_nothing_published_there_is_nothing_to_wait_for() {
    let world = World::new(&["GET_VOLUME_STATS"]);
    world.publish_with("coming", "p", |_, publication| publication.presence = Presence::Uncertain);
    world.publish_with("going", "p", |_, publication| publication.desired = "released");
    let mut poller = world.poller.unwrap();
    poller.look();
    assert!(poller.due.is_empty() && poller.show_at.is_none() && poller.asked.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_driver_has_four_calls_at_once_and_a_volume_one() {
    let mut world = World::new(&["GET_VOLUME_STATS", "GET_VOLUME_HEALTH"]);
    world.driver.change(|said| said.takes = Duration::from_secs(3));
    for n in 0..20 {
        world.publish(&format!("v{n}"), "p");
        world.publish(&format!("v{n}"), "q");
    }
    world.run();
    let known = world.until(|map| map.len() == 40).await;
    assert!(known.values().all(|known| known.error.is_none()));
    let said = world.driver.0.lock().unwrap();
    assert_eq!((said.most_at_once, said.overlapped), (4, false));
}

#[tokio::test(start_paused = true)]
async fn a_question_waits_while_a_step_of_the_volume_is_under_way() {
    let mut world = World::new(&["GET_VOLUME_STATS"]);
    world.publish("v", "p");
    let turn = world.turns.take(&key("v")).await;
    let poller = world.poller.take().unwrap();
    world.tasks.spawn(poller.run(CancellationToken::new()));
    world.pass(Duration::from_secs(200)).await;
    assert_eq!(world.asked("v"), []);
    drop(turn);
    world.pass(Duration::from_secs(2)).await;
    assert_eq!(world.asked("v").len(), 1);
}

#[tokio::test(start_paused = true)]
async fn what_is_not_implemented_is_asked_once_for_each_process() {
    let capabilities = ["GET_VOLUME_STATS", "GET_VOLUME_HEALTH"];
    let mut world = World::new(&capabilities);
    world.driver.change(|said| said.fail = Some(Code::UNIMPLEMENTED));
    let id = world.publish("v", "p");
    world.run();
    let known = world.until(|map| map.values().any(|known| known.measured_at.is_some())).await;
    assert_eq!((known[&id].bytes.used, &known[&id].error), (Some(4), &None), "the file system tells it");
    assert!(world.started.elapsed() < Duration::from_secs(7), "it was not asked at once");
    world.pass(HOUR).await;
    assert_eq!(world.asked("v").len(), 2, "each of its calls once");
    let next = Arc::new(FakeDriver::default());
    world.serve(&next, &capabilities, Connection::Ready);
    world.until(|map| map.values().any(|known| known.bytes.used == Some(40))).await;
    assert!(!next.calls().is_empty());
}

#[tokio::test(start_paused = true)]
async fn file_systems_are_asked_together_and_one_that_hangs_says_so() {
    let mut world = World::new(&[]);
    for n in 0..50 {
        world.publish(&format!("v{n}"), "p");
    }
    let bare = world.publish_with("bare", "p", |_, publication| publication.not_a_mount_point = true);
    let hung = world.publish("hangs", "p");
    world.run();
    let known = world.until(|map| map.len() == 51).await;
    assert_eq!(known[&hung].error.as_deref(), Some("does not answer"));
    assert!(!known.contains_key(&bare), "what is mounted there is not the volume");
    assert_eq!(world.host.0.lock().unwrap().len(), 1, "in one question");
    world.pass(HOUR).await;
    let questions = world.host.0.lock().unwrap().len();
    assert!((50..500).contains(&questions), "{questions} in an hour");
    assert_eq!(world.driver.calls().len(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_call_that_hangs_ends_at_its_deadline_and_what_was_known_stays() {
    let mut world = World::new(&["GET_VOLUME_STATS"]);
    let id = world.publish("v", "p");
    world.run();
    world.until(|map| !map.is_empty()).await;
    world.driver.change(|said| said.takes = HOUR);
    let known = world.until(|map| map.values().any(|known| known.error.is_some())).await;
    assert_eq!(
        known[&id].error.as_deref(),
        Some("NodeGetVolumeStats: DEADLINE_EXCEEDED: no answer within 10s")
    );
    assert_eq!((known[&id].bytes.used, known[&id].measured_at), (Some(40), Some(1000)));
}

#[tokio::test(start_paused = true)]
async fn an_ill_volume_is_told_once_and_again_when_it_is_well() {
    let mut world = World::new(&["VOLUME_CONDITION"]);
    let id = world.publish("v", "p");
    world.publish("v", "q");
    world.run();
    world.until(|map| map.len() == 2).await;
    let ill = |map: &HealthMap| map.values().filter(|known| known.ill().is_some()).count();
    world.driver.change(|said| said.abnormal = Some("bad\nsector".to_owned()));
    let known = world.until(|map| ill(map) == 2).await;
    assert_eq!(known[&id].ills[0].to_string(), "abnormal: bad sector");
    world.pass(HOUR).await;
    // A driver that fails says nothing of the volume.
    world.driver.change(|said| said.fail = Some(Code::UNAVAILABLE));
    world.until(|map| ill(map) == 2 && map.values().all(|known| known.error.is_some())).await;
    world.driver.change(|said| (said.fail, said.abnormal) = (None, None));
    world.until(|map| ill(map) == 0).await;
    let driver = DriverName::new(NAME).unwrap();
    let unwell = EventKind::VolumeUnwell {
        key: key("v"),
        driver: Some(driver.clone()),
        reason: "abnormal: bad sector".to_owned(),
    };
    let well = EventKind::VolumeWell { key: key("v"), driver: Some(driver) };
    assert_eq!(*world.events.lock().unwrap(), [unwell, well]);
}

#[tokio::test(start_paused = true)]
async fn a_condition_without_its_capability_is_not_looked_at() {
    let mut world = World::new(&["GET_VOLUME_STATS"]);
    world.driver.change(|said| said.abnormal = Some("bad".to_owned()));
    let id = world.publish("v", "p");
    world.run();
    assert_eq!(world.until(|map| !map.is_empty()).await[&id].ills, []);
}

#[tokio::test(start_paused = true)]
async fn the_driver_is_told_the_paths_that_a_kubelet_names() {
    let mut world = World::new(&["GET_VOLUME_STATS", "GET_VOLUME_HEALTH"]);
    let layout = Layout::new("/r");
    let block = world.publish_with("b", "p", |id, publication| {
        publication.path = layout.absolute(&layout.block_link(id));
    });
    world.publish("v", "p");
    world.driver.change(|said| said.ills = vec![2, 77]);
    world.run();
    let known = world.until(|map| map.len() == 2).await;
    let kinds: Vec<String> = known[&block].ills.iter().map(ToString::to_string).collect();
    assert_eq!(kinds, ["inaccessible", "status 77"]);
    let said = world.driver.0.lock().unwrap();
    let map = layout.absolute(&layout.block_map(&block)).display().to_string();
    for (volume, path) in [("b", map.as_str()), ("v", "/r/p/v")] {
        let stats = said.stats.iter().find(|request| request.volume_id == volume).unwrap();
        assert_eq!((stats.volume_path.as_str(), stats.staging_target_path.as_str()), (path, ""));
        let health = said.health.iter().find(|request| request.volume_id == volume).unwrap();
        let staging = format!("/r/staging/{volume}");
        assert_eq!((&*health.volume_publish_path, &health.staging_target_path), (path, &staging));
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_gone_is_forgotten_and_a_driver_that_is_away_is_not_asked() {
    let mut world = World::new(&["GET_VOLUME_STATS"]);
    world.publish("v", "p");
    world.run();
    world.until(|map| !map.is_empty()).await;
    let away = Connection::Disconnected { reason: "gone".to_owned() };
    world.serve(&world.driver, &["GET_VOLUME_STATS"], away);
    let before = world.asked("v").len();
    world.pass(HOUR).await;
    assert_eq!(world.asked("v").len(), before);
    assert_eq!(world.health.borrow().len(), 1, "what is known stays");
    world.status.send_modify(|status| status.volumes.clear());
    world.until(HealthMap::is_empty).await;
}

#[tokio::test(start_paused = true)]
async fn an_nfs_server_that_says_nothing_is_told_until_it_answers() {
    let mut world = World::new(&[]);
    let id = world.publish("hangs", "p");
    world.status.send_modify(|status| {
        let volume = status.volumes.get_mut(&key("hangs")).unwrap();
        (volume.csi, volume.nfs) = (None, Some(("nas".to_owned(), "/exp".to_owned())));
    });
    world.run();
    let ill = |map: &HealthMap| map.values().filter_map(VolumeHealth::ill).next().cloned();
    let known = world.until(|map| ill(map).is_some()).await;
    let told = ill(&known).unwrap();
    assert_eq!(told.to_string(), "not-answering: the NFS server nas does not answer");
    assert_eq!((told.since, known[&id].measured_at), (Some(1000), None));
    world.pass(HOUR).await;
    let questions = world.host.0.lock().unwrap().len();
    assert!((100..160).contains(&questions), "{questions} in an hour");
    world.host.1.store(true, Ordering::Relaxed);
    let known = world.until(|map| ill(map).is_none()).await;
    assert_eq!((known[&id].bytes.used, known[&id].error.clone()), (Some(4), None));
    let unwell = EventKind::VolumeUnwell { key: key("hangs"), driver: None, reason: told.to_string() };
    let well = EventKind::VolumeWell { key: key("hangs"), driver: None };
    assert_eq!(*world.events.lock().unwrap(), [unwell, well]);
}

#[tokio::test(start_paused = true)]
async fn the_file_system_of_a_disk_is_asked_how_full_it_is_and_told_when_it_fails() {
    let mut world = World::new(&[]);
    let id = world.publish("hangs", "p");
    world.status.send_modify(|status| {
        let volume = status.volumes.get_mut(&key("hangs")).unwrap();
        (volume.csi, volume.plugin) = (None, Plugin::Local.name());
    });
    world.run();
    let ill = |map: &HealthMap| map.values().filter_map(VolumeHealth::ill).next().cloned();
    let known = world.until(|map| ill(map).is_some()).await;
    assert_eq!(ill(&known).unwrap().to_string(), "not-answering: its file system does not answer");
    world.host.1.store(true, Ordering::Relaxed);
    let known = world.until(|map| ill(map).is_none()).await;
    assert_eq!((known[&id].bytes.used, known[&id].error.clone()), (Some(4), None));
}
