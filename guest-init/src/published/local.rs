//! The guest's own listener of a published TCP port.
//!
//! Docker's packet filter rules lead connections to the guest's other addresses to the container, but not those to its
//! loopback: a program in a container with the host's network reaches a published port at `localhost` natively, and so
//! it does here. Listening also finds out that a program in the guest has the port.

use std::io;
use std::net::SocketAddr;

use protocol::forward::{Published, PublishedBy, Transport, listen_error};
use rustix::net::sockopt;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::task::AbortHandle;

use crate::console::warning;

/// Connections that wait to be taken.
const BACKLOG: u32 = 128;

/// Listens on the address that `port` has on the host, if the guest has that address too.
pub(super) fn listen(port: &Published) -> Result<Option<AbortHandle>, String> {
    if port.by != PublishedBy::Docker || port.transport != Transport::Tcp {
        return Ok(None);
    }
    match bind(port.host) {
        Ok(listener) => Ok(Some(tokio::spawn(serve(listener, port.target)).abort_handle())),
        // An address that only the host has, or a family that this guest has not.
        Err(error)
            if error.kind() == io::ErrorKind::AddrNotAvailable
                || error.raw_os_error() == Some(libc::EAFNOSUPPORT) =>
        {
            Ok(None)
        }
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            Err(listen_error(port.transport, port.host, "address already in use"))
        }
        Err(error) => Err(listen_error(port.transport, port.host, &error.to_string())),
    }
}

fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() {
        TcpSocket::new_v4()?
    } else {
        let socket = TcpSocket::new_v6()?;
        sockopt::set_ipv6_v6only(&socket, true)?;
        socket
    };
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

async fn serve(listener: TcpListener, target: SocketAddr) {
    loop {
        match listener.accept().await {
            Ok((mut client, _)) => {
                tokio::spawn(async move {
                    // Whatever fails here, the client sees its connection end.
                    if let Ok(mut server) = TcpStream::connect(target).await {
                        let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
                    }
                });
            }
            Err(error) => {
                warning!("cannot take a connection to a published port: {error}");
                // Out of descriptors or memory, most likely: others must end first.
                tokio::time::sleep(std::time::Duration::from_millis(200)).await;
            }
        }
    }
}
