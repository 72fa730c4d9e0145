//! The thread that talks to the front end.

use std::{
    io,
    net::Shutdown,
    os::{
        fd::AsRawFd,
        unix::net::{UnixListener, UnixStream},
    },
    sync::{Arc, Mutex, PoisonError},
    thread::JoinHandle,
};

use vhost::vhost_user::{BackendReqHandler, Error};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::{VhostUserError, backend::Backend};
use crate::{event_loop::EventLoop, virtio::VirtioDevice};

/// A device that is served to a vhost-user front end. Dropping it stops it.
pub struct VhostUserServer {
    name: String,
    control: Arc<Control>,
    thread: Option<JoinHandle<()>>,
}

/// How the server's thread is told to stop, whatever it waits for.
struct Control {
    stop: EventFd,
    connection: Mutex<Connection>,
}

enum Connection {
    NotYet,
    Open(UnixStream),
    Stopped,
}

impl VhostUserServer {
    /// Serves `device` to the one front end that connects to `listener`. Own thread. Ends when the front end disconnects;
    /// the device is deactivated and dropped then.
    pub fn spawn(
        name: &str,
        listener: UnixListener,
        device: Box<dyn VirtioDevice>,
    ) -> Result<VhostUserServer, VhostUserError> {
        Self::spawn_device(name, listener, device, true)
    }

    /// [`Self::spawn`], but the device's configuration space is not offered: for a front end that has one of its own, as
    /// QEMU's vhost-user-fs has, and warns of a second.
    pub fn spawn_without_config(
        name: &str,
        listener: UnixListener,
        device: Box<dyn VirtioDevice>,
    ) -> Result<VhostUserServer, VhostUserError> {
        Self::spawn_device(name, listener, device, false)
    }

    fn spawn_device(
        name: &str,
        listener: UnixListener,
        device: Box<dyn VirtioDevice>,
        offers_config: bool,
    ) -> Result<VhostUserServer, VhostUserError> {
        let start_error = |source| VhostUserError::Start {
            name: name.to_owned(),
            source,
        };
        let event_loop = EventLoop::spawn(name).map_err(|source| VhostUserError::EventLoop {
            name: name.to_owned(),
            source,
        })?;
        let control = Arc::new(Control {
            stop: EventFd::new(EFD_NONBLOCK | libc::EFD_CLOEXEC).map_err(start_error)?,
            connection: Mutex::new(Connection::NotYet),
        });
        let seen = Arc::clone(&control);
        let backend = Backend::new(name, device, event_loop, offers_config);
        let thread_name = name.to_owned();
        let thread = std::thread::Builder::new()
            .name(format!("vhu-{name}"))
            .stack_size(256 * 1024)
            .spawn(move || {
                if let Err(error) = serve(&thread_name, &listener, backend, &seen) {
                    tracing::error!(device = thread_name, %error, "a vhost-user device could not be served");
                }
            })
            .map_err(start_error)?;
        Ok(VhostUserServer {
            name: name.to_owned(),
            control,
            thread: Some(thread),
        })
    }

    /// What it is called.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether the front end has gone, or the server has ended for another reason.
    pub fn is_finished(&self) -> bool {
        self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }

    /// Waits until the front end has gone.
    pub fn wait(mut self) -> Result<(), VhostUserError> {
        self.join()
    }

    /// Hangs up on the front end, or stops waiting for it, and deactivates the device.
    pub fn stop(mut self) -> Result<(), VhostUserError> {
        self.hang_up()?;
        self.join()
    }

    fn hang_up(&self) -> Result<(), VhostUserError> {
        let stop_error = |source| VhostUserError::Stop {
            name: self.name.clone(),
            source,
        };
        self.control.stop.write(1).map_err(stop_error)?;
        let mut connection = self
            .control
            .connection
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Connection::Open(stream) = std::mem::replace(&mut *connection, Connection::Stopped) {
            match stream.shutdown(Shutdown::Both) {
                Err(error) if error.kind() != io::ErrorKind::NotConnected => {
                    return Err(stop_error(error));
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn join(&mut self) -> Result<(), VhostUserError> {
        match self.thread.take().map(JoinHandle::join) {
            Some(Err(_)) => Err(VhostUserError::Panicked {
                name: self.name.clone(),
            }),
            _ => Ok(()),
        }
    }
}

impl Drop for VhostUserServer {
    fn drop(&mut self) {
        if self.thread.is_none() {
            return;
        }
        if let Err(error) = self.hang_up().and_then(|()| self.join()) {
            tracing::error!(error = &error as &dyn std::error::Error, "vhost-user");
        }
    }
}

fn serve(name: &str, listener: &UnixListener, backend: Backend, control: &Control) -> io::Result<()> {
    let Some(stream) = accept(listener, &control.stop)? else {
        return Ok(());
    };
    let backend = Arc::new(Mutex::new(backend));
    let mut handler = BackendReqHandler::from_stream(stream, Arc::clone(&backend));
    {
        let mut connection = control.connection.lock().unwrap_or_else(PoisonError::into_inner);
        if matches!(*connection, Connection::Stopped) {
            return Ok(());
        }
        *connection = Connection::Open(handler.try_clone_connection()?);
    }
    tracing::debug!(device = name, "a vhost-user front end has connected");
    loop {
        match handler.handle_request() {
            Ok(()) => {}
            Err(Error::SocketRetry(_)) => {}
            Err(Error::Disconnected | Error::SocketBroken(_)) => break,
            Err(error) => {
                // The front end and we no longer agree on where things stand.
                tracing::error!(device = name, %error, "a vhost-user request failed; hung up on the front end");
                break;
            }
        }
    }
    backend
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .deactivate();
    tracing::debug!(device = name, "the vhost-user front end has gone");
    Ok(())
}

/// The first connection; none when told to stop.
fn accept(listener: &UnixListener, stop: &EventFd) -> io::Result<Option<UnixStream>> {
    listener.set_nonblocking(true)?;
    loop {
        let mut fds = [listener.as_raw_fd(), stop.as_raw_fd()].map(|fd| libc::pollfd {
            fd,
            events: libc::POLLIN,
            revents: 0,
        });
        // SAFETY: the array has two elements and outlives the call.
        if unsafe { libc::poll(fds.as_mut_ptr(), 2, -1) } < 0 {
            let error = io::Error::last_os_error();
            if error.kind() == io::ErrorKind::Interrupted {
                continue;
            }
            return Err(error);
        }
        if fds[1].revents != 0 {
            return Ok(None);
        }
        match listener.accept() {
            Ok((stream, _)) => {
                stream.set_nonblocking(false)?;
                return Ok(Some(stream));
            }
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted | io::ErrorKind::ConnectionAborted
                ) => {}
            Err(error) => return Err(error),
        }
    }
}
