//! The resolver with name servers that the tests play, on this host's loopback.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;

use protocol::dns::Numbered;
use protocol::dns::message::{self, A, NO_ERROR, Query, REFUSED, SERVER_FAILURE};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, UdpSocket, UnixStream};
use tokio::sync::mpsc;

use super::*;

/// A question with this id.
pub(super) fn question(id: u16, name: &str, kind: u16) -> Vec<u8> {
    let mut bytes = id.to_be_bytes().to_vec();
    bytes.extend_from_slice(&[1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    for label in name.split('.') {
        bytes.push(u8::try_from(label.len()).unwrap());
        bytes.extend_from_slice(label.as_bytes());
    }
    bytes.push(0);
    bytes.extend_from_slice(&kind.to_be_bytes());
    bytes.extend_from_slice(&[0, 1]);
    bytes
}

/// The addresses in an answer that [`Query::answer`] made to a question without EDNS.
pub(super) fn addresses(answer: &[u8]) -> Vec<String> {
    let count = usize::from(u16::from_be_bytes([answer[6], answer[7]]));
    let question = answer[12..].iter().position(|byte| *byte == 0).unwrap() + 12 + 5;
    let mut rest = &answer[question..];
    let mut all = Vec::new();
    for _ in 0..count {
        let length = usize::from(u16::from_be_bytes([rest[10], rest[11]]));
        let data = &rest[12..12 + length];
        let address: IpAddr = match <[u8; 4]>::try_from(data) {
            Ok(v4) => v4.into(),
            Err(_) => <[u8; 16]>::try_from(data).unwrap().into(),
        };
        all.push(address.to_string());
        rest = &rest[12 + length..];
    }
    all
}

/// What a server sends for a question.
type Play = fn(&Query) -> Vec<Vec<u8>>;

/// A name server at an address of the loopback, on UDP and TCP; it tells what it was asked, and how.
struct Server {
    heard: mpsc::UnboundedReceiver<(&'static str, String)>,
}

/// The port of all servers of a test: one that is free on the first address, and then most likely on the others.
async fn free_port() -> u16 {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    socket.local_addr().unwrap().port()
}

impl Server {
    async fn start(last: u8, port: u16, udp: Play, tcp: Play) -> Server {
        let place = SocketAddr::from((Ipv4Addr::new(127, 99, 0, last), port));
        let (hear, heard) = mpsc::unbounded_channel();
        let socket = UdpSocket::bind(place).await.unwrap();
        let listener = TcpListener::bind(place).await.unwrap();
        let hear_tcp = hear.clone();
        tokio::spawn(async move {
            let mut buffer = vec![0; 65535];
            loop {
                let (length, asker) = socket.recv_from(&mut buffer).await.unwrap();
                let query = Query::parse(&buffer[..length]).unwrap();
                let _ = hear.send(("udp", query.name().into()));
                for answer in udp(&query) {
                    socket.send_to(&answer, asker).await.unwrap();
                }
            }
        });
        tokio::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let length = stream.read_u16().await.unwrap();
                let mut message = vec![0; length.into()];
                stream.read_exact(&mut message).await.unwrap();
                let query = Query::parse(&message).unwrap();
                let _ = hear_tcp.send(("tcp", query.name().into()));
                for answer in tcp(&query) {
                    stream.write_u16(answer.len() as u16).await.unwrap();
                    stream.write_all(&answer).await.unwrap();
                }
            }
        });
        Server { heard }
    }

    fn heard(&mut self) -> Vec<&'static str> {
        let mut all = Vec::new();
        while let Ok((how, _)) = self.heard.try_recv() {
            all.push(how);
        }
        all
    }
}

fn good(query: &Query) -> Vec<Vec<u8>> {
    vec![query.answer(NO_ERROR, &[&[192, 0, 2, 1]])]
}

fn silent(_: &Query) -> Vec<Vec<u8>> {
    Vec::new()
}

struct Fixture {
    dir: tempfile::TempDir,
    resolver: Arc<Resolver>,
    port: u16,
}

impl Fixture {
    async fn new(servers: &[u8]) -> Fixture {
        let dir = tempfile::tempdir().unwrap();
        let port = free_port().await;
        let resolver = Resolver::with(&dir.path().join("resolv.conf"), &dir.path().join("hosts"), port);
        let fixture = Fixture {
            dir,
            resolver: Arc::new(resolver),
            port,
        };
        fixture.use_servers(servers, "");
        fixture
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn use_servers(&self, servers: &[u8], more: &str) {
        let text: String = servers
            .iter()
            .map(|last| format!("nameserver 127.99.0.{last}\n"))
            .collect();
        fs::write(self.path("resolv.conf"), text + more).unwrap();
    }

    async fn ask(&self, name: &str) -> (u8, Vec<String>) {
        let asked = Query::parse(&question(77, name, A)).unwrap();
        let answer = self.resolver.answer(asked.bytes()).await.unwrap();
        assert!(asked.is_answered_by(77, &answer));
        (message::code(&answer), addresses(&answer))
    }
}

#[tokio::test]
async fn a_server_that_refuses_or_is_not_there_is_passed_over() {
    let fixture = Fixture::new(&[1, 2, 3]).await;
    // Nobody is at the first.
    let refuse: Play = |query| vec![query.answer(REFUSED, &[])];
    let mut second = Server::start(2, fixture.port, refuse, silent).await;
    let mut third = Server::start(3, fixture.port, good, silent).await;
    assert_eq!(
        fixture.ask("a.example").await,
        (NO_ERROR, vec!["192.0.2.1".into()])
    );
    assert_eq!((second.heard(), third.heard()), (vec!["udp"], vec!["udp"]));
    fixture.use_servers(&[1, 2], "");
    assert_eq!(fixture.ask("a.example").await, (REFUSED, vec![]));
    assert_eq!(
        second.heard(),
        ["udp"],
        "once is enough for a server that answers"
    );
    fixture.use_servers(&[1], "");
    assert_eq!(fixture.ask("a.example").await, (SERVER_FAILURE, vec![]));
}

#[tokio::test]
async fn a_change_of_the_file_holds_for_the_next_question() {
    let fixture = Fixture::new(&[1]).await;
    let _first = Server::start(1, fixture.port, good, silent).await;
    let other: Play = |query| vec![query.answer(NO_ERROR, &[&[192, 0, 2, 2]])];
    let _second = Server::start(2, fixture.port, other, silent).await;
    for (server, address) in [(1, "192.0.2.1"), (2, "192.0.2.2"), (1, "192.0.2.1")] {
        fixture.use_servers(&[server], "");
        assert_eq!(fixture.ask("a.example").await, (NO_ERROR, vec![address.into()]));
    }
    fs::write(fixture.path("hosts"), "198.51.100.1 a.example\n").unwrap();
    assert_eq!(fixture.ask("A.Example").await.1, ["198.51.100.1"]);
    fs::remove_file(fixture.path("hosts")).unwrap();
    assert_eq!(fixture.ask("A.Example").await.1, ["192.0.2.1"]);
}

#[tokio::test]
async fn a_server_that_says_nothing_does_not_keep_the_next_from_being_asked() {
    let fixture = Fixture::new(&[1, 2]).await;
    let mut first = Server::start(1, fixture.port, silent, silent).await;
    let _second = Server::start(2, fixture.port, good, silent).await;
    assert_eq!(fixture.ask("a.example").await.1, ["192.0.2.1"]);
    assert_eq!(first.heard(), ["udp"]);
}

#[tokio::test]
async fn servers_take_turns_when_they_are_to() {
    let fixture = Fixture::new(&[]).await;
    fixture.use_servers(&[1, 2], "options rotate\n");
    let mut first = Server::start(1, fixture.port, good, silent).await;
    let mut second = Server::start(2, fixture.port, good, silent).await;
    for _ in 0..4 {
        fixture.ask("a.example").await;
    }
    assert_eq!((first.heard().len(), second.heard().len()), (2, 2));
}

#[tokio::test]
async fn what_does_not_answer_the_question_is_not_taken() {
    let fixture = Fixture::new(&[1]).await;
    let liar: Play = |query| {
        let evil: &[&[u8]] = &[&[6, 6, 6, 6]];
        let mut wrong_id = query.answer(NO_ERROR, evil);
        wrong_id[0] ^= 1;
        let mut wrong_name = query.answer(NO_ERROR, evil);
        wrong_name[13] ^= 1;
        vec![
            b"nonsense".to_vec(),
            wrong_id,
            wrong_name,
            query.bytes().to_vec(),
            query.answer(NO_ERROR, &[&[192, 0, 2, 1]]),
        ]
    };
    let _server = Server::start(1, fixture.port, liar, silent).await;
    assert_eq!(
        fixture.ask("a.example").await,
        (NO_ERROR, vec!["192.0.2.1".into()])
    );
}

#[tokio::test]
async fn the_rest_of_a_long_answer_comes_by_tcp() {
    let fixture = Fixture::new(&[1]).await;
    let cut: Play = |query| vec![query.truncated(&query.answer(NO_ERROR, &[]))];
    let long: Play = |query| vec![query.answer(NO_ERROR, &vec![&[192, 0, 2, 1][..]; 4000])];
    let mut server = Server::start(1, fixture.port, cut, long).await;
    assert_eq!(fixture.ask("a.example").await.1.len(), 4000);
    assert_eq!(server.heard(), ["udp", "tcp"]);
    // One that does not speak TCP: what there is has to do.
    fixture.use_servers(&[2], "");
    let _other = Server::start(2, fixture.port, cut, |_| vec![b"nonsense".to_vec()]).await;
    let asked = question(1, "a.example", A);
    let answer = fixture.resolver.answer(&asked).await.unwrap();
    assert!(message::is_truncated(&answer));
}

#[tokio::test]
async fn many_questions_are_answered_at_once_on_one_stream() {
    let fixture = Fixture::new(&[1]).await;
    let _server = Server::start(1, fixture.port, good, silent).await;
    let (mut guest, host) = UnixStream::pair().unwrap();
    let serving = tokio::spawn(serve(host, Arc::clone(&fixture.resolver)));
    let asked = 200_u32;
    for number in 0..asked {
        let name = if number % 2 == 0 {
            "host.docker.internal"
        } else {
            "a.example"
        };
        let message = question(number as u16, name, A);
        Numbered { number, message }.write(&mut guest).await.unwrap();
    }
    // Nothing to be answered, and no harm.
    let message = b"nonsense".to_vec();
    Numbered {
        number: 1000,
        message,
    }
    .write(&mut guest)
    .await
    .unwrap();
    let mut numbers = Vec::new();
    for _ in 0..asked {
        let Numbered { number, message } = Numbered::read(&mut guest).await.unwrap().unwrap();
        assert_eq!(message[..2], (number as u16).to_be_bytes());
        let expected = if number % 2 == 0 {
            "192.168.127.1"
        } else {
            "192.0.2.1"
        };
        assert_eq!(addresses(&message), [expected]);
        numbers.push(number);
    }
    numbers.sort_unstable();
    assert_eq!(numbers, (0..asked).collect::<Vec<_>>());
    drop(guest);
    serving.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_guest_that_asks_for_more_than_there_is_room_for_is_told_so() {
    let fixture = Fixture::new(&[1]).await;
    let _server = Server::start(1, fixture.port, silent, silent).await;
    let (mut guest, host) = UnixStream::pair().unwrap();
    let _serving = tokio::spawn(serve(host, Arc::clone(&fixture.resolver)));
    for number in 0..260 {
        let message = question(number as u16, "a.example", A);
        Numbered { number, message }.write(&mut guest).await.unwrap();
    }
    let Numbered { number, message } = Numbered::read(&mut guest).await.unwrap().unwrap();
    assert!(number >= 256);
    assert_eq!(message::code(&message), SERVER_FAILURE);
}
