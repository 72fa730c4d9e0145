//! A guest that is played: it asks for ports and answers what comes on the streams.

use std::io;
use std::os::unix::net::UnixStream as StdUnixStream;

use futures_util::FutureExt;
use protocol::forward::{
    Piece, PieceReader, PublishedBy, ToGuest, ToHost, Transport, write_end, write_piece,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::sync::mpsc;

use super::*;
use crate::machine::state::State;

/// The guest's ends of the streams that the host opens.
struct Guest {
    calls: mpsc::UnboundedReceiver<(u32, StdUnixStream)>,
    talk: UnixStream,
    ports: Arc<PublishedPorts>,
    _keeper: PortsKeeper,
    _states: watch::Sender<State>,
}

fn tokio_stream(stream: StdUnixStream) -> UnixStream {
    stream.set_nonblocking(true).unwrap();
    UnixStream::from_std(stream).unwrap()
}

impl Guest {
    async fn new() -> Guest {
        let (sender, mut calls) = mpsc::unbounded_channel();
        let dial = GuestDial::new(move |port| {
            let (host, guest) = StdUnixStream::pair().unwrap();
            let there = sender.send((port, guest)).is_ok();
            async move {
                if there {
                    Ok(host)
                } else {
                    Err(DialError::NoGuest(port))
                }
            }
            .boxed()
        });
        let ports = Arc::new(PublishedPorts::default());
        let (states, receiver) = watch::channel(State::Running);
        let keeper = keep(Arc::clone(&ports), dial, receiver);
        let (port, talk) = calls.recv().await.unwrap();
        assert_eq!(port, protocol::ports::PUBLISH);
        let mut guest = Guest {
            calls,
            talk: tokio_stream(talk),
            ports,
            _keeper: keeper,
            _states: states,
        };
        assert_eq!(guest.hear().await, ToGuest::HostNetwork { used: false });
        guest
    }

    async fn hear(&mut self) -> ToGuest {
        frame::read_async(&mut self.talk).await.unwrap()
    }

    async fn ask(&mut self, message: ToHost) -> Option<String> {
        frame::write_async(&mut self.talk, &message).await.unwrap();
        match self.hear().await {
            ToGuest::Answer { refused, .. } => refused,
            other @ ToGuest::HostNetwork { .. } => panic!("{other:?} is no answer"),
        }
    }

    /// Asks for a port of the loopback that is free; its address.
    async fn publish(&mut self, id: u64, transport: Transport) -> SocketAddr {
        let host = free_port();
        assert_eq!(self.ask(listen(id, transport, host)).await, None);
        host
    }

    async fn stream(&mut self) -> (StreamHello, UnixStream) {
        let (port, stream) = self.calls.recv().await.unwrap();
        assert_eq!(port, protocol::ports::FORWARD);
        let mut stream = tokio_stream(stream);
        (frame::read_async(&mut stream).await.unwrap(), stream)
    }
}

fn free_port() -> SocketAddr {
    std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
}

fn listen(id: u64, transport: Transport, host: SocketAddr) -> ToHost {
    ToHost::Listen {
        id,
        port: Published {
            transport,
            host,
            target: "172.17.0.2:80".parse().unwrap(),
            by: PublishedBy::Docker,
        },
    }
}

#[tokio::test]
async fn a_connection_is_carried_and_each_way_ends_by_itself() {
    let mut guest = Guest::new().await;
    let address = guest.publish(1, Transport::Tcp).await;
    let mut client = TcpStream::connect(address).await.unwrap();
    let (hello, mut stream) = guest.stream().await;
    assert_eq!(hello.id, 1);
    assert_eq!(hello.client, client.local_addr().unwrap());
    client.write_all(b"question").await.unwrap();
    client.shutdown().await.unwrap();
    let mut reader = PieceReader::new(&mut stream);
    assert_eq!(reader.next().await.unwrap(), Piece::Data(b"question"));
    assert_eq!(reader.next().await.unwrap(), Piece::End);
    assert_eq!(guest.ports.list()[0].open, 1);
    write_piece(&mut stream, b"answer").await.unwrap();
    write_end(&mut stream).await.unwrap();
    let mut answer = String::new();
    client.read_to_string(&mut answer).await.unwrap();
    assert_eq!(answer, "answer");
}

#[tokio::test]
async fn a_connection_that_the_guest_cuts_is_reset() {
    let mut guest = Guest::new().await;
    let address = guest.publish(1, Transport::Tcp).await;
    let mut client = TcpStream::connect(address).await.unwrap();
    let (_, mut stream) = guest.stream().await;
    write_piece(&mut stream, b"half of").await.unwrap();
    let mut half = [0; 7];
    client.read_exact(&mut half).await.unwrap();
    drop(stream);
    assert_eq!(
        client.read_u8().await.unwrap_err().kind(),
        io::ErrorKind::ConnectionReset
    );
}

#[tokio::test]
async fn a_client_that_resets_cuts_the_stream() {
    let mut guest = Guest::new().await;
    let address = guest.publish(1, Transport::Tcp).await;
    let client = TcpStream::connect(address).await.unwrap();
    let (_, stream) = guest.stream().await;
    client.set_zero_linger().unwrap();
    drop(client);
    assert!(PieceReader::new(stream).next().await.is_err(), "no orderly end");
}

#[tokio::test]
async fn a_taken_port_is_refused_and_a_closed_one_is_free_when_that_is_said() {
    let mut guest = Guest::new().await;
    for transport in [Transport::Tcp, Transport::Udp] {
        let address = guest.publish(1, transport).await;
        let refused = guest.ask(listen(2, transport, address)).await.unwrap();
        assert_eq!(
            refused,
            format!("listen {transport}4 {address}: bind: address already in use")
        );
        assert_eq!(guest.ask(ToHost::Close { id: 1 }).await, None);
        assert_eq!(guest.ask(listen(3, transport, address)).await, None);
        assert_eq!(guest.ask(ToHost::Close { id: 3 }).await, None);
    }
    assert_eq!(
        guest.ask(ToHost::Close { id: 77 }).await,
        None,
        "unknown is no error"
    );
    assert!(guest.ports.list().is_empty());
}

#[tokio::test]
async fn what_a_container_said_last_arrives_though_its_port_is_closed() {
    let mut guest = Guest::new().await;
    let address = guest.publish(1, Transport::Tcp).await;
    let mut client = TcpStream::connect(address).await.unwrap();
    let (_, mut stream) = guest.stream().await;
    assert_eq!(guest.ask(ToHost::Close { id: 1 }).await, None);
    assert!(TcpStream::connect(address).await.is_err());
    write_piece(&mut stream, b"bye").await.unwrap();
    write_end(&mut stream).await.unwrap();
    client.shutdown().await.unwrap();
    let mut said = String::new();
    client.read_to_string(&mut said).await.unwrap();
    assert_eq!(said, "bye");
}

#[tokio::test]
async fn datagrams_of_each_peer_have_a_stream_and_answers_go_back() {
    let mut guest = Guest::new().await;
    let address = guest.publish(1, Transport::Udp).await;
    for _ in 0..2 {
        let peer = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        peer.connect(address).await.unwrap();
        peer.send(b"").await.unwrap();
        peer.send(b"two").await.unwrap();
        let (hello, mut stream) = guest.stream().await;
        assert_eq!(hello.client, peer.local_addr().unwrap());
        let mut reader = PieceReader::new(&mut stream);
        assert_eq!(reader.next().await.unwrap(), Piece::Data(b""));
        assert_eq!(reader.next().await.unwrap(), Piece::Data(b"two"));
        write_piece(&mut stream, b"answer").await.unwrap();
        let mut buffer = [0; 16];
        assert_eq!(peer.recv(&mut buffer).await.unwrap(), 6);
        assert_eq!(&buffer[..6], b"answer");
    }
    assert_eq!(guest.ports.list()[0].total, 2);
}

#[tokio::test]
async fn a_guest_that_breaks_off_loses_its_ports_and_is_called_again() {
    let mut guest = Guest::new().await;
    let address = guest.publish(1, Transport::Tcp).await;
    let (mut ours, _) = StdUnixStream::pair().map(|(a, b)| (tokio_stream(a), b)).unwrap();
    std::mem::swap(&mut guest.talk, &mut ours);
    drop(ours);
    let (port, talk) = guest.calls.recv().await.unwrap();
    assert_eq!(port, protocol::ports::PUBLISH);
    guest.talk = tokio_stream(talk);
    assert!(guest.ports.list().is_empty());
    assert_eq!(guest.hear().await, ToGuest::HostNetwork { used: false });
    assert_eq!(guest.ask(listen(1, Transport::Tcp, address)).await, None);
    guest.ports.set_host_network(true);
    assert_eq!(guest.hear().await, ToGuest::HostNetwork { used: true });
}

#[tokio::test]
async fn a_guest_that_says_nonsense_harms_nobody() {
    let mut guest = Guest::new().await;
    let address = guest.publish(1, Transport::Tcp).await;
    assert!(
        guest
            .ask(listen(1, Transport::Tcp, free_port()))
            .await
            .unwrap()
            .contains("two published ports")
    );
    let mut client = TcpStream::connect(address).await.unwrap();
    let (_, mut stream) = guest.stream().await;
    stream.write_all(&0x7fff_ffff_u32.to_le_bytes()).await.unwrap();
    assert_eq!(
        client.read_u8().await.unwrap_err().kind(),
        io::ErrorKind::ConnectionReset
    );
    guest.talk.write_all(b"\x02\0\0\0{}").await.unwrap();
    let (port, _talk) = guest.calls.recv().await.unwrap();
    assert_eq!(port, protocol::ports::PUBLISH);
    assert!(guest.ports.list().is_empty());
}
