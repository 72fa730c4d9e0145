//! Heads pass unchanged, whatever the kind of message.

use super::*;

const REQUESTS: &[&str] = &[
    "GET /v1.47/containers/json?all=1&filters=%7B%22label%22%3A%7B%22a%3Db%22%3Atrue%7D%7D HTTP/1.1\r\nHost: api.moby.localhost\r\nUser-Agent: Docker-Client/28.0 (linux)\r\nX-mixed-CASE: a  b\r\n\r\n",
    "HEAD /_ping HTTP/1.1\r\nHost: x\r\n\r\n",
    "GET /info?a={b}|c HTTP/1.1\r\nhost: lower\r\nB: 2\r\nb: 3\r\nA: 1\r\n\r\n",
    "DELETE /v1.47/images/a%2Fb:c%20d HTTP/1.1\r\nHost: x\r\nAccept-Encoding: gzip\r\n\r\n",
    "POST /v1.47/containers/x/start HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\nContent-Type: text/plain\r\n\r\n",
    "POST /v1.47/containers/x/start HTTP/1.1\r\nHost: x\r\n\r\n",
    "POST /v1.47/containers/create HTTP/1.1\r\nHost: x\r\nContent-Length: 14\r\nContent-Type: application/json\r\n\r\n{\"Image\":\"a\"}\n",
    "PUT /v1.47/containers/x/archive?path=/ HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nContent-Type: application/x-tar\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    "OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n",
    "GET http://docker/version HTTP/1.1\r\nHost: docker\r\n\r\n",
];

#[tokio::test]
async fn requests_arrive_byte_for_byte() {
    let setup = Setup::new();
    for request in REQUESTS {
        setup.request(request).await;
    }
}

const RESPONSES: &[&str] = &[
    "HTTP/1.1 200 OK\r\nApi-Version: 1.47\r\nContent-Type: application/json\r\nDocker-Experimental: false\r\nOstype: linux\r\nServer: Docker/26.1.5 (linux)\r\nDate: Sun, 01 Jan 2023 00:00:00 GMT\r\nContent-Length: 3\r\n\r\n{}\n",
    "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nX-Od: d\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    "HTTP/1.1 204 No Content\r\nApi-Version: 1.47\r\n\r\n",
    "HTTP/1.1 304 Not Modified\r\nApi-Version: 1.47\r\n\r\n",
    "HTTP/1.1 404 Gone Fishing\r\nContent-Length: 0\r\n\r\n",
    "HTTP/1.1 500 Internal Server Error\r\nSet-Cookie: a\r\nsEt-cOOkie: b\r\nContent-Length: 1\r\n\r\nx",
    "HTTP/1.1 200 OK\r\nTrailer: X-Sum\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\nx-sum: 7\r\n\r\n",
];

#[tokio::test]
async fn responses_arrive_byte_for_byte_on_one_connection() {
    let setup = Setup::new();
    let request = "GET /x HTTP/1.1\r\nHost: x\r\nTE: trailers\r\n\r\n";
    let (mut client, mut dockerd) = setup.request(request).await;
    for (index, response) in RESPONSES.iter().enumerate() {
        if index > 0 {
            send(&mut client, request).await;
            assert_eq!(read_exactly(&mut dockerd, request.len()).await, request);
        }
        send(&mut dockerd, response).await;
        assert_eq!(&read_exactly(&mut client, response.len()).await, response);
    }
}

#[tokio::test]
async fn a_head_response_keeps_the_length_it_announces() {
    let setup = Setup::new();
    let request = "HEAD /_ping HTTP/1.1\r\nHost: x\r\n\r\n";
    let (mut client, mut dockerd) = setup.request(request).await;
    for response in [
        "HTTP/1.1 200 OK\r\nContent-Length: 1234\r\nSwarm: inactive\r\n\r\n",
        "HTTP/1.1 200 OK\r\nSwarm: inactive\r\n\r\n",
    ] {
        send(&mut dockerd, response).await;
        assert_eq!(read_exactly(&mut client, response.len()).await, response);
        send(&mut client, request).await;
        assert_eq!(read_exactly(&mut dockerd, request.len()).await, request);
    }
}

#[tokio::test]
async fn an_old_client_gets_its_answer_as_dockerd_gives_it() {
    let setup = Setup::new();
    let (mut client, mut dockerd) = setup.request("GET /version HTTP/1.0\r\nHost: x\r\n\r\n").await;
    let response = "HTTP/1.0 200 OK\r\nContent-Type: application/json\r\n\r\n{\"a\":\r\n1}";
    send(&mut dockerd, response).await;
    drop(dockerd);
    assert_eq!(read_to_end(&mut client).await, response);
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_order() {
    let setup = Setup::new();
    let mut client = setup.client().await;
    let request = |path: &str| format!("GET /{path} HTTP/1.1\r\nHost: x\r\n\r\n");
    send(&mut client, &(request("a") + &request("b") + &request("c"))).await;
    let (mut dockerd, _) = setup.dockerd.accept().await.unwrap();
    for path in ["a", "b", "c"] {
        let expected = request(path);
        assert_eq!(read_exactly(&mut dockerd, expected.len()).await, expected);
        let response = format!("HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n{path}");
        send(&mut dockerd, &response).await;
        assert_eq!(read_exactly(&mut client, response.len()).await, response);
    }
}

#[tokio::test]
async fn a_client_that_waits_to_send_is_told_when_dockerd_wants_the_body() {
    let setup = Setup::new();
    let head = "POST /build HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\n";
    let (mut client, mut dockerd) = setup.request(head).await;
    send(&mut dockerd, "HTTP/1.1 100 Continue\r\n\r\n").await;
    let go_on = "HTTP/1.1 100 Continue\r\n\r\n";
    assert_eq!(read_exactly(&mut client, go_on.len()).await, go_on);
    send(&mut client, "body").await;
    assert_eq!(read_exactly(&mut dockerd, 4).await, "body");
    let response = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
    send(&mut dockerd, response).await;
    assert_eq!(read_exactly(&mut client, response.len()).await, response);
}

#[tokio::test]
async fn a_client_that_waits_to_send_is_not_told_to_when_dockerd_refuses() {
    let setup = Setup::new();
    let head = "POST /build HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\n";
    let (mut client, mut dockerd) = setup.request(head).await;
    let response = "HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno";
    send(&mut dockerd, response).await;
    assert_eq!(read_to_end(&mut client).await, response);
    assert_eq!(read_to_end(&mut dockerd).await, "");
}

#[tokio::test]
async fn a_head_of_the_size_go_allows_passes_and_a_larger_one_is_refused() {
    let setup = Setup::new();
    let value = "v".repeat(700 * 1024);
    setup
        .request(&format!("GET /x HTTP/1.1\r\nX-Registry-Config: {value}\r\n\r\n"))
        .await;

    let mut client = setup.client().await;
    let value = "v".repeat(2 << 20);
    // The proxy may refuse before it has read everything.
    let _ = client
        .write_all(format!("GET /x HTTP/1.1\r\nX: {value}\r\n\r\n").as_bytes())
        .await;
    let mut start = [0; 12];
    bounded(client.read_exact(&mut start)).await.unwrap();
    assert_eq!(&start, b"HTTP/1.1 431");
}

#[tokio::test]
async fn without_a_guest_the_answer_says_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let dockerd = UnixListener::bind(dir.path().join("unused")).unwrap();
    let dial = GuestDial::new(|port| async move { Err(DialError::NoGuest(port)) }.boxed());
    let setup = Setup::with(dir, dockerd, dial);
    let mut client = setup.client().await;
    for _ in 0..2 {
        send(&mut client, "GET /v1.47/info HTTP/1.1\r\nHost: x\r\n\r\n").await;
        let head = "HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\ncontent-length: ";
        assert_eq!(read_exactly(&mut client, head.len()).await, head);
        let rest = read_exactly(&mut client, 7).await;
        let (length, _) = rest.split_once('\r').unwrap();
        let body = read_exactly(&mut client, length.parse().unwrap()).await;
        let body: serde_json::Value = serde_json::from_str(&body).unwrap();
        assert!(
            body["message"].as_str().unwrap().contains("berth start"),
            "{body}"
        );
    }
}
