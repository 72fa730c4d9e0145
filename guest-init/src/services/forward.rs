//! The FORWARD service: a connection of the host is one connection to a published port, or the datagrams of one peer.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use protocol::forward::{
    CarryEnd, Piece, PieceBuffer, PieceReader, StreamHello, Transport, carry, write_end,
};
use protocol::frame;
use tokio::io::split;
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;

use super::Stream;
use crate::published::Ports;

/// How long the host may take to name the port.
const HELLO: Duration = Duration::from_secs(10);
/// The largest datagram there is.
const DATAGRAM: usize = 64 * 1024;

/// Serves one connection to its end. That a container refuses it is told by cutting it, and is nothing to report.
pub(crate) async fn serve(mut stream: impl Stream, ports: Arc<Ports>) -> anyhow::Result<()> {
    let hello: StreamHello = timeout(HELLO, frame::read_async(&mut stream))
        .await
        .context("the host did not say which port it connects to")??;
    // Its container may have ended meanwhile.
    let Some(port) = ports.get(hello.id) else {
        return Ok(());
    };
    match port.transport {
        Transport::Tcp => {
            if let Ok(container) = ports.connect(hello.id, hello.client).await {
                tcp(stream, container).await;
            }
        }
        Transport::Udp => udp(stream, port.target).await?,
    }
    Ok(())
}

async fn tcp(stream: impl Stream, mut container: TcpStream) {
    // What comes in pieces goes on in pieces: who sends small ones has a reason, or set Nagle's algorithm up himself.
    let _ = container.set_nodelay(true);
    if let CarryEnd::RemoteBroke(_) = carry(&mut container, stream).await {
        // The client's connection was reset, and so is this one.
        let _ = container.set_zero_linger();
    }
}

async fn udp(stream: impl Stream, target: SocketAddr) -> io::Result<()> {
    let any: SocketAddr = if target.is_ipv4() {
        (Ipv4Addr::UNSPECIFIED, 0).into()
    } else {
        (Ipv6Addr::UNSPECIFIED, 0).into()
    };
    let socket = UdpSocket::bind(any).await?;
    socket.connect(target).await?;
    let (from_host, mut to_host) = split(stream);
    let sending = async {
        let mut reader = PieceReader::new(from_host);
        loop {
            match reader.next().await {
                // A datagram that cannot be sent is lost, as datagrams are: nobody listens yet, or it is too large.
                Ok(Piece::Data(data)) => drop(socket.send(data).await),
                Ok(Piece::End) | Err(_) => return,
            }
        }
    };
    let receiving = async {
        let mut buffer = PieceBuffer::new(DATAGRAM);
        loop {
            match socket.recv(buffer.room()).await {
                Ok(length) => {
                    if buffer.send(&mut to_host, length).await.is_err() {
                        return;
                    }
                }
                // The container's word that nobody listens; somebody may, later.
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {}
                Err(_) => {
                    let _ = write_end(&mut to_host).await;
                    return;
                }
            }
        }
    };
    // The host decides when nothing more is to be expected.
    tokio::select! {
        () = sending => {}
        () = receiving => {}
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use protocol::boot::GuestEvent;
    use protocol::forward::{Published, PublishedBy, ToGuest, ToHost, write_piece};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, UnixStream};

    use super::*;
    use crate::host_link::HostLink;

    async fn published(transport: Transport, target: SocketAddr) -> (Arc<Ports>, u64) {
        let (events, _link) = HostLink::new();
        events.send(GuestEvent::NetworkReady);
        let ports = Ports::new(events);
        let mut host = ports.take_over();
        let publishing = tokio::spawn({
            let ports = ports.clone();
            let port = Published {
                transport,
                host: "192.0.2.1:1".parse().unwrap(),
                target,
                by: PublishedBy::Docker,
            };
            async move { ports.publish(port).await.unwrap() }
        });
        let Some(ToHost::Listen { id, .. }) = host.messages.recv().await else {
            panic!("nothing was published");
        };
        ports.hear(ToGuest::Answer { id, refused: None });
        (ports, publishing.await.unwrap())
    }

    async fn open(ports: Arc<Ports>, id: u64) -> UnixStream {
        let (mut host, guest) = UnixStream::pair().unwrap();
        tokio::spawn(serve(guest, ports));
        let client = "198.51.100.7:5555".parse().unwrap();
        frame::write_async(&mut host, &StreamHello { id, client })
            .await
            .unwrap();
        host
    }

    #[tokio::test]
    async fn a_stream_becomes_a_connection_to_the_container() {
        let container = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (ports, id) = published(Transport::Tcp, container.local_addr().unwrap()).await;
        let mut host = open(ports, id).await;
        let (mut server, _) = container.accept().await.unwrap();
        write_piece(&mut host, b"hello").await.unwrap();
        write_end(&mut host).await.unwrap();
        let mut got = String::new();
        server.read_to_string(&mut got).await.unwrap();
        assert_eq!(got, "hello");
        server.write_all(b"world").await.unwrap();
        drop(server);
        let mut reader = PieceReader::new(host);
        assert_eq!(reader.next().await.unwrap(), Piece::Data(b"world"));
        assert_eq!(reader.next().await.unwrap(), Piece::End);
        assert!(reader.next().await.is_err());
    }

    #[tokio::test]
    async fn a_cut_stream_resets_the_container_and_a_reset_cuts_the_stream() {
        let container = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (ports, id) = published(Transport::Tcp, container.local_addr().unwrap()).await;
        let mut host = open(ports.clone(), id).await;
        let (mut server, _) = container.accept().await.unwrap();
        write_piece(&mut host, b"half of").await.unwrap();
        let mut half = [0; 7];
        server.read_exact(&mut half).await.unwrap();
        drop(host);
        let error = server.read_u8().await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);

        let host = open(ports, id).await;
        let (mut server, _) = container.accept().await.unwrap();
        server.write_all(b"half of").await.unwrap();
        let mut reader = PieceReader::new(host);
        assert_eq!(reader.next().await.unwrap(), Piece::Data(b"half of"));
        server.set_zero_linger().unwrap();
        drop(server);
        assert!(reader.next().await.is_err(), "no orderly end");
    }

    #[tokio::test]
    async fn nobody_there_cuts_the_stream() {
        let (ports, id) = published(Transport::Tcp, "127.0.0.1:1".parse().unwrap()).await;
        for id in [id, 99] {
            let host = open(ports.clone(), id).await;
            assert!(PieceReader::new(host).next().await.is_err());
        }
    }

    #[tokio::test]
    async fn datagrams_keep_their_bounds_also_when_empty() {
        let container = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let (ports, id) = published(Transport::Udp, container.local_addr().unwrap()).await;
        let mut host = open(ports, id).await;
        for datagram in [&b"one"[..], b"", b"three"] {
            write_piece(&mut host, datagram).await.unwrap();
        }
        let mut buffer = [0; 16];
        let mut from = None;
        for datagram in [&b"one"[..], b"", b"three"] {
            let (length, peer) = container.recv_from(&mut buffer).await.unwrap();
            assert_eq!(&buffer[..length], datagram);
            from = Some(peer);
        }
        container.send_to(b"", from.unwrap()).await.unwrap();
        container.send_to(b"answer", from.unwrap()).await.unwrap();
        let mut reader = PieceReader::new(host);
        assert_eq!(reader.next().await.unwrap(), Piece::Data(b""));
        assert_eq!(reader.next().await.unwrap(), Piece::Data(b"answer"));
    }
}
