//! Connections that stop being HTTP: upgrades, and dockerd's older way without one.

use super::*;

const UPGRADE: (&str, &str) = (
    "POST /v1.47/containers/x/attach?stdin=1&stream=1 HTTP/1.1\r\nHost: api.moby.localhost\r\nConnection: Upgrade\r\nContent-Type: text/plain\r\nUpgrade: tcp\r\nContent-Length: 0\r\n\r\n",
    "HTTP/1.1 101 UPGRADED\r\nContent-Type: application/vnd.docker.raw-stream\r\nConnection: Upgrade\r\nUpgrade: tcp\r\nApi-Version: 1.47\r\n\r\n",
);

const OLD_STYLE: (&str, &str) = (
    "POST /exec/x/start HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 29\r\n\r\n{\"Detach\":false,\"Tty\":false}\n",
    "HTTP/1.1 200 OK\r\nContent-Type: application/vnd.docker.raw-stream\r\n\r\n",
);

const BUILDKIT: (&str, &str) = (
    "POST /session HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: h2c\r\nX-Docker-Expose-Session-Uuid: abc\r\n\r\n",
    "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n",
);

const ALL: [(&str, &str); 3] = [UPGRADE, OLD_STYLE, BUILDKIT];

impl Setup {
    async fn raw(&self, (request, response): (&str, &str)) -> (UnixStream, UnixStream) {
        let (mut client, mut dockerd) = self.request(request).await;
        send(&mut dockerd, response).await;
        assert_eq!(read_exactly(&mut client, response.len()).await, response);
        (client, dockerd)
    }
}

#[tokio::test]
async fn bytes_go_both_ways_and_the_clients_end_leaves_the_output_open() {
    let setup = Setup::new();
    for kind in ALL {
        let (mut client, mut dockerd) = setup.raw(kind).await;
        send(&mut client, "in").await;
        assert_eq!(read_exactly(&mut dockerd, 2).await, "in");
        send(&mut dockerd, "out").await;
        assert_eq!(read_exactly(&mut client, 3).await, "out");
        client.shutdown().await.unwrap();
        assert_eq!(read_to_end(&mut dockerd).await, "");
        send(&mut dockerd, "more out").await;
        assert_eq!(read_exactly(&mut client, 8).await, "more out");
        drop(dockerd);
        assert_eq!(read_to_end(&mut client).await, "");
    }
}

#[tokio::test]
async fn dockerds_end_of_output_leaves_the_input_open() {
    let setup = Setup::new();
    for kind in ALL {
        let (mut client, mut dockerd) = setup.raw(kind).await;
        send(&mut dockerd, "last words").await;
        dockerd.shutdown().await.unwrap();
        assert_eq!(read_to_end(&mut client).await, "last words");
        send(&mut client, "still typing").await;
        assert_eq!(read_exactly(&mut dockerd, 12).await, "still typing");
        drop(client);
        assert_eq!(read_to_end(&mut dockerd).await, "");
    }
}

#[tokio::test]
async fn a_dockerd_that_closes_ends_a_client_that_only_ever_writes() {
    let setup = Setup::new();
    for kind in ALL {
        let (mut client, dockerd) = setup.raw(kind).await;
        drop(dockerd);
        assert_eq!(read_to_end(&mut client).await, "");
        // As on a direct connection, a write to it fails from then on.
        bounded(async { while client.write_all(&[0; 4096]).await.is_ok() {} }).await;
    }
}

#[tokio::test]
async fn a_client_that_is_gone_ends_a_dockerd_that_only_ever_writes() {
    let setup = Setup::new();
    for kind in ALL {
        let (client, mut dockerd) = setup.raw(kind).await;
        drop(client);
        bounded(async { while dockerd.write_all(&[0; 4096]).await.is_ok() {} }).await;
    }
}

#[tokio::test]
async fn input_that_came_with_the_request_and_output_that_came_with_the_head_are_kept() {
    let setup = Setup::new();
    for (request, response) in ALL {
        let mut client = setup.client().await;
        send(&mut client, &format!("{request}early in")).await;
        client.shutdown().await.unwrap();
        let (mut dockerd, _) = setup.dockerd.accept().await.unwrap();
        assert_eq!(read_exactly(&mut dockerd, request.len()).await, request);
        send(&mut dockerd, &format!("{response}early out")).await;
        let mut got = read_exactly(&mut client, response.len() + 9).await;
        assert_eq!(got.split_off(response.len()), "early out");
        assert_eq!(got, response);
        drop(dockerd);
        assert_eq!(read_to_end(&mut client).await, "");
    }
}

#[tokio::test]
async fn pipelined_answers_leave_before_the_raw_stream_begins() {
    let setup = Setup::new();
    let get = "GET /x HTTP/1.1\r\nHost: x\r\n\r\n";
    let (mut client, mut dockerd) = setup.request(get).await;
    send(&mut client, UPGRADE.0).await;
    let body = "b".repeat(1 << 20);
    let first = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len());
    let expected = first.clone() + UPGRADE.1;
    let play_dockerd = async {
        send(&mut dockerd, &first).await;
        assert_eq!(read_exactly(&mut dockerd, UPGRADE.0.len()).await, UPGRADE.0);
        send(&mut dockerd, UPGRADE.1).await;
    };
    let (got, ()) = tokio::join!(read_exactly(&mut client, expected.len()), play_dockerd);
    assert!(got == expected);
}

#[tokio::test]
async fn a_refused_upgrade_is_an_ordinary_answer() {
    let setup = Setup::new();
    let (mut client, mut dockerd) = setup.request(UPGRADE.0).await;
    let response = "HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\n\r\nno";
    send(&mut dockerd, response).await;
    assert_eq!(read_exactly(&mut client, response.len()).await, response);
    let next = "GET /x HTTP/1.1\r\nHost: x\r\n\r\n";
    send(&mut client, next).await;
    assert_eq!(read_exactly(&mut dockerd, next.len()).await, next);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn much_both_ways_at_once_arrives_whole() {
    const LENGTH: usize = 32 << 20;
    let setup = Setup::new();
    for kind in [UPGRADE, OLD_STYLE] {
        let (client, dockerd) = setup.raw(kind).await;
        let ends = [client, dockerd].map(|stream| {
            let (mut read, mut write) = stream.into_split();
            let writer = tokio::spawn(async move {
                bodies::write_pattern(&mut write, LENGTH).await;
                write.shutdown().await.unwrap();
            });
            let reader = tokio::spawn(async move {
                bodies::check_pattern(&mut read, LENGTH).await;
                assert_eq!(read.read(&mut [0]).await.unwrap(), 0);
            });
            (writer, reader)
        });
        for (writer, reader) in ends {
            bounded(writer).await.unwrap();
            bounded(reader).await.unwrap();
        }
    }
}
