//! Asking one name server one question.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use protocol::dns::MAX_MESSAGE;
use protocol::dns::message::{self, Query};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};

/// The server's answer to `query`, with the query's id: by UDP, and by TCP when that is not enough. It may take for ever.
pub(super) async fn ask(server: SocketAddr, query: &Query) -> io::Result<Vec<u8>> {
    let answer = by_udp(server, query).await?;
    if !message::is_truncated(&answer) {
        return Ok(query.adopt(answer));
    }
    match by_tcp(server, query).await {
        Ok(whole) => Ok(query.adopt(whole)),
        Err(error) => {
            tracing::debug!(%server, %error, "there is no more of an answer by TCP");
            Ok(query.adopt(answer))
        }
    }
}

/// Only who sees the packets can guess the port, which the kernel chooses by chance, and the id.
async fn by_udp(server: SocketAddr, query: &Query) -> io::Result<Vec<u8>> {
    let any: SocketAddr = if server.is_ipv4() {
        (Ipv4Addr::UNSPECIFIED, 0).into()
    } else {
        (Ipv6Addr::UNSPECIFIED, 0).into()
    };
    let socket = UdpSocket::bind(any).await?;
    // From now on only this server's packets come, and the errors of the way to it.
    socket.connect(server).await?;
    let id = random_id()?;
    socket.send(&query.with_id(id)).await?;
    loop {
        socket.readable().await?;
        match receive(&socket) {
            Ok(answer) if query.is_answered_by(id, &answer) => return Ok(answer),
            Ok(_) => tracing::debug!(%server, "what a name server sent is no answer"),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
}

/// Takes a datagram that is there. Its room is taken only now: many servers may be waited for that say nothing.
fn receive(socket: &UdpSocket) -> io::Result<Vec<u8>> {
    let mut buffer = vec![0; MAX_MESSAGE];
    let length = socket.try_recv(&mut buffer)?;
    Ok(buffer[..length].to_vec())
}

async fn by_tcp(server: SocketAddr, query: &Query) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(server).await?;
    let id = random_id()?;
    let question = query.with_id(id);
    let length = u16::try_from(question.len()).map_err(io::Error::other)?;
    let mut message = length.to_be_bytes().to_vec();
    message.extend_from_slice(&question);
    stream.write_all(&message).await?;
    let length = stream.read_u16().await?;
    let mut answer = vec![0; length.into()];
    stream.read_exact(&mut answer).await?;
    if query.is_answered_by(id, &answer) {
        Ok(answer)
    } else {
        Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "what the name server sent is no answer",
        ))
    }
}

fn random_id() -> io::Result<u16> {
    let mut id = [0; 2];
    // So few bytes always come at once.
    rustix::rand::getrandom(&mut id, rustix::rand::GetRandomFlags::empty())?;
    Ok(u16::from_ne_bytes(id))
}
