//! However a connection ends on one side, it ends on the other as if there were no proxy.

use super::*;

const LOGS: &str = "GET /containers/x/logs?follow=1 HTTP/1.1\r\nHost: x\r\n\r\n";
const STREAM: &str = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n";

#[tokio::test]
async fn a_client_that_goes_away_ends_dockerds_side_at_once() {
    let setup = Setup::new();
    for answered in [false, true] {
        let (mut client, mut dockerd) = setup.request(LOGS).await;
        if answered {
            send(&mut dockerd, STREAM).await;
            read_exactly(&mut client, STREAM.len()).await;
        }
        drop(client);
        assert_eq!(read_to_end(&mut dockerd).await, "");
        // Not merely half of it.
        bounded(async { while dockerd.write_all(b"1\r\na\r\n").await.is_ok() {} }).await;
    }
}

#[tokio::test]
async fn a_client_that_sends_no_more_still_gets_its_answer() {
    let setup = Setup::new();
    let (mut client, mut dockerd) = setup.request(LOGS).await;
    client.shutdown().await.unwrap();
    // dockerd is told, and decides.
    assert_eq!(read_to_end(&mut dockerd).await, "");
    let response = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
    send(&mut dockerd, response).await;
    drop(dockerd);
    assert_eq!(read_to_end(&mut client).await, response);
}

#[tokio::test]
async fn requests_sent_ahead_of_the_clients_end_are_all_answered() {
    let setup = Setup::new();
    let mut client = setup.client().await;
    let request = |path: &str| format!("GET /{path} HTTP/1.1\r\nHost: x\r\n\r\n");
    send(&mut client, &(request("a") + &request("b"))).await;
    client.shutdown().await.unwrap();
    let mut expected = String::new();
    for path in ["a", "b"] {
        let (mut dockerd, _) = bounded(setup.dockerd.accept()).await.unwrap();
        assert_eq!(read_to_end(&mut dockerd).await, request(path));
        let response = format!("HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n{path}");
        send(&mut dockerd, &response).await;
        expected += &response;
    }
    assert_eq!(read_to_end(&mut client).await, expected);
}

#[tokio::test]
async fn a_request_sent_just_before_the_client_went_away_reaches_dockerd() {
    let setup = Setup::new();
    for _ in 0..20 {
        let mut client = setup.client().await;
        let request = "POST /containers/x/kill HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\nbody";
        send(&mut client, request).await;
        drop(client);
        let (mut dockerd, _) = bounded(setup.dockerd.accept()).await.unwrap();
        assert_eq!(read_to_end(&mut dockerd).await, request);
    }
}

#[tokio::test]
async fn while_dockerd_restarts_a_new_client_is_told_so() {
    let setup = Setup::new();
    let upload = "POST /build HTTP/1.1\r\nHost: x\r\nContent-Length: 1048576\r\n\r\nbeginning";
    let attach =
        "POST /containers/x/attach HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n";
    for request in [LOGS, upload, attach] {
        // guest-init closes the connection at once, whatever has arrived by then.
        for read in [0, request.len()] {
            let mut client = setup.client().await;
            send(&mut client, request).await;
            let (mut dockerd, _) = bounded(setup.dockerd.accept()).await.unwrap();
            read_exactly(&mut dockerd, read).await;
            drop(dockerd);
            let mut answer = Vec::new();
            while !answer.ends_with(b"}\n") {
                assert!(bounded(client.read_buf(&mut answer)).await.unwrap() > 0);
            }
            let answer = String::from_utf8(answer).unwrap();
            assert!(
                answer.starts_with("HTTP/1.1 503 Service Unavailable\r\n"),
                "{answer}"
            );
            assert!(
                answer.contains("{\"message\":\"Docker is restarting in the guest"),
                "{answer}"
            );
        }
    }
}

#[tokio::test]
async fn a_client_that_was_told_so_can_ask_again_on_the_same_connection() {
    let setup = Setup::new();
    let (mut client, dockerd) = setup.request(LOGS).await;
    drop(dockerd);
    let mut answer = Vec::new();
    while !answer.ends_with(b"}\n") {
        assert!(bounded(client.read_buf(&mut answer)).await.unwrap() > 0);
    }
    send(&mut client, LOGS).await;
    let (mut dockerd, _) = bounded(setup.dockerd.accept()).await.unwrap();
    assert_eq!(read_exactly(&mut dockerd, LOGS.len()).await, LOGS);
    send(&mut dockerd, STREAM).await;
    assert_eq!(read_exactly(&mut client, STREAM.len()).await, STREAM);
}

#[tokio::test]
async fn a_dockerd_that_dies_before_a_later_answer_cuts_the_client() {
    let setup = Setup::new();
    let (mut client, mut dockerd) = setup.request(LOGS).await;
    let response = "HTTP/1.1 204 No Content\r\n\r\n";
    send(&mut dockerd, response).await;
    read_exactly(&mut client, response.len()).await;
    send(&mut client, LOGS).await;
    read_exactly(&mut dockerd, LOGS.len()).await;
    drop(dockerd);
    assert_eq!(read_to_end(&mut client).await, "");
}

#[tokio::test]
async fn a_dockerd_that_dies_within_its_answer_does_not_look_like_its_end() {
    let setup = Setup::new();
    let (mut client, mut dockerd) = setup.request(LOGS).await;
    send(&mut dockerd, STREAM).await;
    drop(dockerd);
    assert_eq!(read_to_end(&mut client).await, STREAM, "no last chunk");

    let (mut client, mut dockerd) = setup.request(LOGS).await;
    let part = "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n12345";
    send(&mut dockerd, part).await;
    drop(dockerd);
    assert_eq!(read_to_end(&mut client).await, part);
}

#[tokio::test]
async fn a_client_that_dies_within_its_body_does_not_look_like_its_end() {
    let setup = Setup::new();
    let part = "POST /build HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n";
    let (client, mut dockerd) = setup.request(part).await;
    drop(client);
    assert_eq!(read_to_end(&mut dockerd).await, "", "no last chunk");
}

#[tokio::test]
async fn an_answer_given_before_the_upload_is_over_arrives() {
    let setup = Setup::new();
    let head = format!(
        "POST /build HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n",
        1u64 << 40
    );
    let (client, mut dockerd) = setup.request(&head).await;
    let (mut from_proxy, mut to_proxy) = client.into_split();
    let upload = tokio::spawn(async move { while to_proxy.write_all(&[0; 65536]).await.is_ok() {} });
    let mut some = vec![0; 1 << 20];
    dockerd.read_exact(&mut some).await.unwrap();
    let response = "HTTP/1.1 400 Bad Request\r\nContent-Length: 2\r\nConnection: close\r\n\r\nno";
    send(&mut dockerd, response).await;
    drop(dockerd);
    let mut got = vec![0; response.len()];
    bounded(from_proxy.read_exact(&mut got)).await.unwrap();
    assert_eq!(got, response.as_bytes());
    bounded(upload).await.unwrap();
}

#[tokio::test]
async fn a_connection_dockerd_closes_while_idle_is_closed_for_the_client() {
    let setup = Setup::new();
    let (mut client, mut dockerd) = setup.request(LOGS).await;
    let response = "HTTP/1.1 204 No Content\r\n\r\n";
    send(&mut dockerd, response).await;
    read_exactly(&mut client, response.len()).await;
    drop(dockerd);
    assert_eq!(read_to_end(&mut client).await, "");
}

#[tokio::test]
async fn an_answer_that_says_close_ends_the_connection() {
    let setup = Setup::new();
    let (mut client, mut dockerd) = setup.request(LOGS).await;
    let response = "HTTP/1.1 500 Internal Server Error\r\nContent-Length: 1\r\nConnection: close\r\n\r\nx";
    send(&mut dockerd, response).await;
    assert_eq!(read_to_end(&mut client).await, response);
    drop(dockerd);
}

#[tokio::test]
async fn stopping_cuts_open_connections_and_takes_no_new_ones() {
    let setup = Setup::new();
    let (mut client, mut dockerd) = setup.request(LOGS).await;
    setup.stop.send_replace(true);
    bounded(setup.serving).await.unwrap().unwrap();
    assert_eq!(read_to_end(&mut client).await, "");
    assert_eq!(read_to_end(&mut dockerd).await, "");
    assert!(UnixStream::connect(&setup.socket).await.is_err());
}

#[tokio::test]
async fn hundreds_of_idle_clients_do_not_stand_in_the_way_of_one() {
    let setup = Setup::new();
    // Two descriptors each in this process: stay below the usual limit of 1024.
    let mut idle = Vec::new();
    for _ in 0..400 {
        idle.push(setup.client().await);
    }
    setup.request(LOGS).await;
}
