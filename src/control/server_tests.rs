use super::*;
use crate::control::client::{Client, ClientError};
use crate::control::samples;
use crate::model::Presence;

/// A server on a socket of its own, with a status that the test owns.
struct Fixture {
    directory: tempfile::TempDir,
    status: watch::Sender<Status>,
    asked: mpsc::Receiver<Request>,
    stop: CancellationToken,
    served: tokio_util::task::TaskTracker,
}

impl Fixture {
    fn new(status: Status) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let status = watch::Sender::new(status);
        let (requests, asked) = mpsc::channel(8);
        let stop = CancellationToken::new();
        let server = Server {
            status: status.subscribe(),
            health: watch::channel(Arc::default()).1,
            requests,
            policy: watch::channel(Policy { group: None, is_member: |_, _| false }).1,
            node: "n1".to_owned(),
            ambient: Arc::new(Ambient::new(1, || samples::NOW)),
            stop: stop.clone(),
        };
        let listener = UnixListener::bind(directory.path().join("s")).unwrap();
        let served = tokio_util::task::TaskTracker::new();
        served.spawn(server.serve(listener));
        Self { directory, status, asked, stop, served }
    }

    async fn client(&self) -> Client {
        Client::connect(&self.directory.path().join("s")).await.unwrap()
    }
}

/// Whether a test can run; says so if not. The server answers nobody but root and its group.
#[expect(clippy::print_stdout, reason = "scripts/test reads it")]
fn can_run(test: &str) -> bool {
    let root = crate::host::is_root();
    if !root {
        println!("NOT-RUN: {test}: only root is answered");
    }
    root
}

#[tokio::test]
async fn root_asks_and_is_answered() {
    if !can_run("root_asks_and_is_answered") {
        return;
    }
    let mut fixture = Fixture::new(samples::all());
    let mut client = fixture.client().await;
    let all = client.status(Vec::new()).await.unwrap();
    assert_eq!((all.volumes.len(), all.node.as_str()), (4, "n1"));
    let some = client.status(vec!["db/data".into(), "db/none".into()]).await.unwrap();
    assert_eq!((some.volumes.len(), some.unknown), (1, vec!["pvc/db/none".to_owned()]));
    assert_eq!(client.drivers().await.unwrap().drivers.len(), 1);

    let retry = client.retry(vec!["db/assets".into(), "db/none".into()]);
    let desk = async {
        let Some(Request::Retry { object, reply }) = fixture.asked.recv().await else { panic!() };
        assert_eq!(object.unwrap().to_string(), "PersistentVolumeClaim db/assets");
        reply.send(2).unwrap();
    };
    let (answer, ()) = tokio::join!(retry, desk);
    let answer = answer.unwrap();
    assert_eq!((answer.steps, answer.unknown), (2, vec!["pvc/db/none".to_owned()]));

    let desk = async {
        let Some(Request::Approve { reply }) = fixture.asked.recv().await else { panic!() };
        reply.send(Ok(Approved { publications: 12, generation: 5 })).unwrap();
    };
    let mut other = fixture_client(&fixture.directory).await;
    let (answer, ()) = tokio::join!(other.approve(), desk);
    assert_eq!(answer.unwrap().approved, 12);
}

async fn fixture_client(directory: &tempfile::TempDir) -> Client {
    Client::connect(&directory.path().join("s")).await.unwrap()
}

#[tokio::test]
async fn pauses_name_what_is_known_and_say_what_is_paused_then() {
    if !can_run("pauses_name_what_is_known_and_say_what_is_paused_then") {
        return;
    }
    let mut fixture = Fixture::new(samples::all());
    let mut client = fixture.client().await;
    let names = ["driver/nfs.csi.k8s.io", "driver/none", "pod/db/none", "pod/db/web"].map(ToOwned::to_owned);
    let desk = async {
        for _ in 0..2 {
            let Some(Request::Pause { scope, reply }) = fixture.asked.recv().await else { panic!() };
            fixture.status.send_modify(|status| status.paused.push(scope));
            reply.send(Ok(())).unwrap();
        }
    };
    let (answer, ()) = tokio::join!(client.pause(names.to_vec(), false), desk);
    let answer = answer.unwrap();
    assert_eq!(answer.paused, ["driver/nfs.csi.k8s.io", "pod/db/web"]);
    assert_eq!(answer.unknown, ["driver/none", "pod/db/none"]);

    let desk = async {
        for taken_back in [1, 0] {
            let Some(Request::Resume { reply, .. }) = fixture.asked.recv().await else { panic!() };
            reply.send(Ok(taken_back)).unwrap();
        }
    };
    let names = vec!["pod/db/web".to_owned(), "db/data".to_owned()];
    let (answer, ()) = tokio::join!(client.resume(names, false), desk);
    let answer = answer.unwrap();
    assert_eq!((answer.resumed, answer.unknown), (1, vec!["pvc/db/data".to_owned()]));

    let desk = async {
        let Some(Request::Resume { scope: crate::model::Scope::All, reply }) = fixture.asked.recv().await
        else {
            panic!()
        };
        reply.send(Err("cannot write /s/notes".to_owned())).unwrap();
    };
    let (answer, ()) = tokio::join!(client.resume(Vec::new(), true), desk);
    assert_eq!(answer.unwrap_err().to_string(), "cannot write /s/notes");

    // What names nothing must not mean everything.
    for (names, all) in [(Vec::new(), false), (vec!["db/data".to_owned()], true)] {
        let refused = client.pause(names, all).await.unwrap_err();
        assert!(matches!(refused, ClientError::Refused { .. }), "{refused:?}");
    }
}

#[tokio::test]
async fn adopt_and_release_hand_on_what_was_named_and_the_words_that_come_back() {
    if !can_run("adopt_and_release_hand_on_what_was_named_and_the_words_that_come_back") {
        return;
    }
    let mut fixture = Fixture::new(samples::all());
    let mut client = fixture.client().await;
    let desk = async {
        let Some(Request::Adopt { what, reply }) = fixture.asked.recv().await else { panic!() };
        assert_eq!(what, crate::model::Handover::Path("/r/pods/x".into()));
        reply.send(Err("/r/pods/x is no foreign volume; nothing was done".to_owned())).unwrap();
        let Some(Request::Release { what, force: true, reply }) = fixture.asked.recv().await else {
            panic!()
        };
        let pod = crate::model::ObjectRef::new("Pod", "db", "web");
        assert_eq!(what, crate::model::Handover::Object(pod));
        reply.send(Ok(vec!["pv-data is taken down".to_owned()])).unwrap();
    };
    let asked = async {
        let adopted = client.adopt("/r/pods//x/".into()).await.unwrap_err();
        assert_eq!(adopted.to_string(), "/r/pods/x is no foreign volume; nothing was done");
        let released = client.release("pod/db/web".into(), true).await.unwrap();
        assert_eq!(released.done, ["pv-data is taken down"]);
        let unknown = client.release("db/none".into(), false).await.unwrap();
        assert_eq!(unknown.unknown, ["pvc/db/none"]);
        let refused = client.adopt("pod/db/web".into()).await.unwrap_err();
        assert!(refused.to_string().contains("volumectl foreign"), "{refused}");
    };
    tokio::join!(asked, desk);
}

#[tokio::test]
async fn a_wait_ends_when_the_status_says_so_and_tells_why_when_it_does_not() {
    if !can_run("a_wait_ends_when_the_status_says_so_and_tells_why_when_it_does_not") {
        return;
    }
    let mut status = samples::ready();
    let key = samples::add(&mut status, "web", "data", Presence::No);
    samples::block(&mut status, &key, "publish", Some(samples::NOW + 1000));
    let fixture = Fixture::new(status);
    let mut client = fixture.client().await;
    let names = || vec!["pod/db/web".to_owned()];
    let late = client.wait(names(), Goal::Published, Some(Duration::from_millis(20))).await.unwrap();
    assert_eq!(late.results[0].outcome, "timed-out");
    assert_eq!(late.results[0].volumes[0].reason, "publish: UNAVAILABLE: server down");

    let yes = |publication: &mut crate::model::PublicationStatus| publication.presence = Presence::Yes;
    let wait = client.wait(names(), Goal::Published, None);
    let publish = async { fixture.status.send_modify(|status| samples::publication(status, &key, yes)) };
    let (answer, ()) = tokio::join!(wait, publish);
    assert_eq!(answer.unwrap().results[0].outcome, "reached");
}

#[tokio::test]
async fn a_stop_ends_those_who_wait() {
    if !can_run("a_stop_ends_those_who_wait") {
        return;
    }
    let fixture = Fixture::new(Status::default());
    let mut client = fixture.client().await;
    let wait = client.wait(vec!["x".into()], Goal::Published, Some(Duration::from_millis(300)));
    let stop = async {
        fixture.stop.cancel();
        fixture.served.close();
        fixture.served.wait().await;
    };
    let (answer, ()) = tokio::join!(wait, stop);
    assert!(matches!(answer, Err(ClientError::NoAnswer { .. })), "{answer:?}");
}

#[tokio::test]
async fn a_wrong_name_is_refused_with_the_right_form() {
    if !can_run("a_wrong_name_is_refused_with_the_right_form") {
        return;
    }
    let fixture = Fixture::new(samples::ready());
    let refused = fixture.client().await.status(vec!["a/b/c".into()]).await.unwrap_err();
    assert!(refused.to_string().contains("pod/[NAMESPACE/]NAME"), "{refused}");
}

#[tokio::test]
async fn where_nobody_listens_the_client_says_what_to_look_at() {
    let error = Client::connect(std::path::Path::new("/nonexistent/control.sock")).await.unwrap_err();
    assert!(error.to_string().contains("systemctl status volumed"), "{error}");
}
