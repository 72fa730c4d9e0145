//! Calls that wait until the guest knows all host changes.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use futures_util::future::BoxFuture;
use tokio::sync::oneshot;

use super::binds::{CREATE, Sharing, with_length};
use super::*;
use crate::docker::barrier::{self, Barrier};

/// A barrier that the test says something at, for each call; what has no more to say stands for ever.
#[derive(Default)]
struct Fake {
    asked: AtomicUsize,
    said: Mutex<Vec<oneshot::Receiver<anyhow::Result<()>>>>,
}

impl Fake {
    fn next(&self) -> oneshot::Sender<anyhow::Result<()>> {
        let (say, said) = oneshot::channel();
        self.said.lock().unwrap().insert(0, said);
        say
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::Relaxed)
    }
}

impl Barrier for Fake {
    fn reach(&self) -> BoxFuture<'static, anyhow::Result<()>> {
        self.asked.fetch_add(1, Ordering::Relaxed);
        match self.said.lock().unwrap().pop() {
            Some(said) => async { said.await.unwrap() }.boxed(),
            None => std::future::pending().boxed(),
        }
    }
}

/// One that is reached at once, always.
struct Reached(AtomicUsize);

impl Barrier for Reached {
    fn reach(&self) -> BoxFuture<'static, anyhow::Result<()>> {
        self.0.fetch_add(1, Ordering::Relaxed);
        std::future::ready(Ok(())).boxed()
    }
}

fn post(path: &str) -> String {
    format!("POST /v1.47{path} HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n")
}

#[tokio::test]
async fn a_call_reaches_dockerd_when_the_guest_has_been_told() {
    let fake = Arc::new(Fake::default());
    let setup = Setup::routed(barrier::behind(Router::default(), fake.clone()));
    let say = fake.next();
    let mut client = setup.client().await;
    let start = post("/containers/a/start");
    send(&mut client, &start).await;
    bounded(async {
        while fake.asked() == 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert!(setup.dockerd.accept().now_or_never().is_none());
    say.send(Ok(())).unwrap();
    let (mut dockerd, _) = bounded(setup.dockerd.accept()).await.unwrap();
    assert_eq!(read_exactly(&mut dockerd, start.len()).await, start);
    let answer = "HTTP/1.1 204 No Content\r\n\r\n";
    send(&mut dockerd, answer).await;
    assert_eq!(read_exactly(&mut client, answer.len()).await, answer);
}

#[tokio::test]
async fn a_guest_that_is_not_told_is_no_obstacle() {
    let fake = Arc::new(Fake::default());
    let setup = Setup::routed(barrier::behind(Router::default(), fake.clone()));
    fake.next().send(Err(anyhow::anyhow!("it is not told"))).unwrap();
    setup.request(&post("/containers/a/restart")).await;
    // The other one is waited for, until it has been long enough.
    tokio::time::pause();
    setup.request(&post("/containers/a/start")).await;
    assert_eq!(fake.asked(), 2);
}

#[tokio::test]
async fn calls_wait_that_start_or_enter_a_container_and_no_others() {
    let reached = Arc::new(Reached(AtomicUsize::new(0)));
    let setup = Setup::routed(barrier::behind(Router::default(), reached.clone()));
    for path in [
        "/build?t=x",
        "/containers/create?name=a",
        "/containers/a/attach?stream=1",
        "/containers/a/exec",
        "/containers/a/restart",
        "/containers/a/start",
        "/containers/a/unpause",
        "/exec/a/start",
    ] {
        setup.request(&post(path)).await;
        assert_eq!(reached.0.swap(0, Ordering::Relaxed), 1, "{path}");
    }
    for path in [
        "/containers/a/stop",
        "/containers/a/wait",
        "/exec/a/resize",
        "/volumes/create",
    ] {
        setup.request(&post(path)).await;
    }
    setup
        .request("GET /v1.47/containers/a/json HTTP/1.1\r\nHost: x\r\n\r\n")
        .await;
    assert_eq!(reached.0.load(Ordering::Relaxed), 0);
}

#[tokio::test]
async fn a_body_comes_whole_and_a_raw_stream_goes_on_behind_the_barrier() {
    let reached = Arc::new(Reached(AtomicUsize::new(0)));
    let setup = Setup::routed(barrier::behind(Router::default(), reached));
    let head = "POST /v1.47/exec/a/start HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n";
    let (mut client, mut dockerd) = setup.request(&with_length(head, "{\"Tty\":true}")).await;
    let answer = "HTTP/1.1 101 UPGRADED\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\nraw";
    send(&mut dockerd, answer).await;
    assert_eq!(read_exactly(&mut client, answer.len()).await, answer);
    send(&mut client, "back").await;
    assert_eq!(read_exactly(&mut dockerd, 4).await, "back");
}

#[tokio::test]
async fn a_container_is_made_with_its_sources_found_and_behind_the_barrier() {
    let reached = Arc::new(Reached(AtomicUsize::new(0)));
    let sharing = Sharing::routed(|router| barrier::behind(router, reached.clone()));
    let (body, mapped) = sharing.bodies();
    let mut client = sharing.setup.client().await;
    send(&mut client, &with_length(CREATE, &body)).await;
    let (mut dockerd, _) = bounded(sharing.setup.dockerd.accept()).await.unwrap();
    let expected = with_length(CREATE, &mapped);
    assert_eq!(read_exactly(&mut dockerd, expected.len()).await, expected);
    assert_eq!(reached.0.load(Ordering::Relaxed), 1);
    // What is refused waits for nothing.
    let mut client = sharing.setup.client().await;
    let outside = "{\"HostConfig\":{\"Binds\":[\"/nonexistent/berth:/x\"]}}";
    send(&mut client, &with_length(CREATE, outside)).await;
    let refused = "HTTP/1.1 400 ";
    assert_eq!(read_exactly(&mut client, refused.len()).await, refused);
    assert_eq!(reached.0.load(Ordering::Relaxed), 1);
}
