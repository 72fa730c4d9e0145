//! Calls that name bind sources: their bodies are read whole, and nothing but the sources is changed in them.

use std::path::Path;

use super::*;
use crate::docker::binds;
use crate::shares::Share;
use crate::shares::foreign::PathTable;
use crate::shares::sources::{Mounted, Sources};

/// A proxy, and a directory of the host that the guest has at `/there`.
pub(super) struct Sharing {
    pub(super) setup: Setup,
    shared: TempDir,
}

impl Sharing {
    fn new() -> Sharing {
        Sharing::routed(|router| router)
    }

    /// One whose calls also go through what `more` adds.
    pub(super) fn routed(more: impl FnOnce(Router) -> Router) -> Sharing {
        let shared = tempfile::tempdir().unwrap();
        let real = shared.path().canonicalize().unwrap();
        let sources = Sources::new(
            PathTable::default(),
            "/nonexistent/docker.sock".into(),
            "berth share".into(),
        );
        sources.set(vec![Mounted {
            share: Share::new(&real, Some(Path::new("/there")), false, &[]).unwrap(),
            real,
            hidden: Vec::new(),
        }]);
        Sharing {
            setup: Setup::routed(more(binds::router(&sources))),
            shared,
        }
    }

    /// A body with the shared directory in it, and the same as dockerd is to get it.
    pub(super) fn bodies(&self) -> (String, String) {
        let path = self.shared.path().canonicalize().unwrap();
        let body = |source: &str| {
            format!(
                "{{ \"N\":1234567890123456789012345, \"HostConfig\": {{\"Binds\":[\"{source}:/x\"]}} ,\"é\":\"\\u00e9\"}}\n"
            )
        };
        (body(path.to_str().unwrap()), body("/there"))
    }

    /// Sends `request`; dockerd's end of it, which has got `expected`, and the client's.
    async fn arrives(&self, request: &str, expected: &str) -> (UnixStream, UnixStream) {
        let mut client = self.setup.client().await;
        send(&mut client, request).await;
        let (mut dockerd, _) = bounded(self.setup.dockerd.accept()).await.unwrap();
        assert_eq!(read_exactly(&mut dockerd, expected.len()).await, expected);
        (client, dockerd)
    }
}

pub(super) const CREATE: &str =
    "POST /v1.47/containers/create?name=a HTTP/1.1\r\nHost: x\r\nUser-Agent: D/1\r\n";

pub(super) fn with_length(head: &str, body: &str) -> String {
    format!(
        "{head}Content-Type: application/json\r\nContent-Length: {}\r\nX-last: z\r\n\r\n{body}",
        body.len()
    )
}

#[tokio::test]
async fn a_body_with_a_source_to_map_arrives_with_it_mapped_and_else_as_it_was() {
    let sharing = Sharing::new();
    let (body, mapped) = sharing.bodies();
    let (mut client, mut dockerd) = sharing
        .arrives(&with_length(CREATE, &body), &with_length(CREATE, &mapped))
        .await;
    let response = "HTTP/1.1 201 Created\r\nApi-Version: 1.47\r\nContent-Length: 2\r\n\r\n{}";
    send(&mut dockerd, response).await;
    assert_eq!(read_exactly(&mut client, response.len()).await, response);
    // The connection goes on, also with what is none of berth's business.
    let next = "GET /v1.47/containers/a/json HTTP/1.1\r\nHost: x\r\n\r\n";
    send(&mut client, next).await;
    assert_eq!(read_exactly(&mut dockerd, next.len()).await, next);
}

#[tokio::test]
async fn a_body_in_which_nothing_is_to_change_arrives_byte_for_byte() {
    let sharing = Sharing::new();
    for body in [
        "{\"Image\":\"a\",\"HostConfig\":{\"Binds\":[\"volume:/x\"]}, \"n\":1e400}\n",
        "{\"HostConfig\":{\"Binds\":[\"/var/run/docker.sock:/var/run/docker.sock\"]}}",
        "not JSON",
        "",
    ] {
        let request = with_length(CREATE, body);
        sharing.arrives(&request, &request).await;
    }
    // A body of the same form in another call is none of this.
    let (body, _) = sharing.bodies();
    let request = with_length("POST /v1.47/containers/a/update HTTP/1.1\r\nHost: x\r\n", &body);
    sharing.arrives(&request, &request).await;
}

#[tokio::test]
async fn a_body_in_chunks_arrives_whole() {
    let sharing = Sharing::new();
    let (body, mapped) = sharing.bodies();
    let chunked = |body: &str| {
        let (first, rest) = body.split_at(9);
        let chunks = [first, rest]
            .map(|chunk| format!("{:x}\r\n{chunk}\r\n", chunk.len()))
            .concat();
        format!("{CREATE}Transfer-Encoding: chunked\r\n\r\n{chunks}0\r\n\r\n")
    };
    let expected = format!("{CREATE}content-length: {}\r\n\r\n{mapped}", mapped.len());
    sharing.arrives(&chunked(&body), &expected).await;
    // Unchanged, it stays in chunks, of which there may be fewer.
    let plain = "{\"Image\":\"a\"}";
    let expected = format!("{CREATE}Transfer-Encoding: chunked\r\n\r\nD\r\n{plain}\r\n0\r\n\r\n");
    sharing.arrives(&chunked(plain), &expected).await;
}

#[tokio::test]
async fn a_client_that_waits_to_send_its_body_is_told_to() {
    let sharing = Sharing::new();
    let (body, mapped) = sharing.bodies();
    let mut client = sharing.setup.client().await;
    let head = with_length(CREATE, &body).replace("X-last", "Expect: 100-continue\r\nX-last");
    let (head, body) = head.split_at(head.len() - body.len());
    send(&mut client, head).await;
    let go_on = "HTTP/1.1 100 Continue\r\n\r\n";
    assert_eq!(read_exactly(&mut client, go_on.len()).await, go_on);
    send(&mut client, body).await;
    let (mut dockerd, _) = bounded(sharing.setup.dockerd.accept()).await.unwrap();
    let expected = with_length(CREATE, &mapped);
    assert_eq!(read_exactly(&mut dockerd, expected.len()).await, expected);
}

#[tokio::test]
async fn a_source_outside_is_refused_before_dockerd_hears_of_it_and_the_connection_goes_on() {
    let sharing = Sharing::new();
    let outside = tempfile::tempdir().unwrap();
    let outside = outside.path().canonicalize().unwrap();
    let body = format!("{{\"HostConfig\":{{\"Binds\":[\"{}:/x\"]}}}}", outside.display());
    let mut client = sharing.setup.client().await;
    send(&mut client, &with_length(CREATE, &body)).await;
    let (head, message) = read_answer(&mut client).await;
    assert!(head.starts_with("HTTP/1.1 400 Bad Request\r\n"), "{head}");
    assert!(message.starts_with(outside.to_str().unwrap()), "{message}");
    assert!(
        message.ends_with(&format!("`berth share add {}`", outside.display())),
        "{message}"
    );
    let next = "GET /_ping HTTP/1.1\r\nHost: x\r\n\r\n";
    send(&mut client, next).await;
    let (mut dockerd, _) = bounded(sharing.setup.dockerd.accept()).await.unwrap();
    assert_eq!(read_exactly(&mut dockerd, next.len()).await, next);
}

#[tokio::test]
async fn a_body_without_end_is_refused_and_not_kept() {
    let sharing = Sharing::new();
    let mut client = sharing.setup.client().await;
    send(
        &mut client,
        &format!("{CREATE}Content-Length: 99999999999\r\n\r\n{{"),
    )
    .await;
    let (head, message) = read_answer(&mut client).await;
    assert!(head.starts_with("HTTP/1.1 413 "), "{head}");
    assert!(message.contains("8 MiB"), "{message}");

    let mut client = sharing.setup.client().await;
    send(
        &mut client,
        &format!("{CREATE}Transfer-Encoding: chunked\r\n\r\n"),
    )
    .await;
    let chunk = format!("100000\r\n{}\r\n", " ".repeat(1 << 20));
    // It may stop reading at any point behind the limit.
    for _ in 0..9 {
        if client.write_all(chunk.as_bytes()).await.is_err() {
            break;
        }
    }
    let (head, _) = read_answer(&mut client).await;
    assert!(head.starts_with("HTTP/1.1 413 "), "{head}");
}

#[tokio::test]
async fn a_client_that_leaves_before_its_body_is_whole_creates_nothing() {
    let sharing = Sharing::new();
    let mut client = sharing.setup.client().await;
    send(
        &mut client,
        &format!("{CREATE}Content-Length: 100\r\n\r\n{{\"Image\""),
    )
    .await;
    client.shutdown().await.unwrap();
    assert_eq!(read_to_end(&mut client).await, "");
    assert!(sharing.setup.dockerd.accept().now_or_never().is_none());
}

/// The head of an error, and its message.
async fn read_answer(client: &mut UnixStream) -> (String, String) {
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        head.push_str(&read_exactly(client, 1).await);
    }
    let length = head.split_once("content-length: ").unwrap().1;
    let length = length.split_once('\r').unwrap().0.parse().unwrap();
    let body = read_exactly(client, length).await;
    let body: serde_json::Value = serde_json::from_str(&body).unwrap();
    (head, body["message"].as_str().unwrap().to_owned())
}
