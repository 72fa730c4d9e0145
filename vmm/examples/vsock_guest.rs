//! The guest's end of the `vhost_user_vsock` example: serves echo, sink and source on vsock, measures the host's services when
//! asked, and powers off. Made to be the init of a tiny initramfs, so link it statically
//! (`RUSTFLAGS=-Ctarget-feature=+crt-static`, `--target x86_64-unknown-linux-gnu`).

use std::{
    io::{self, Read, Write},
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd},
        unix::net::UnixStream,
    },
};

#[path = "vsock/services.rs"]
mod services;

fn main() {
    for port in [services::ECHO, services::SINK, services::SOURCE, services::CLIENT] {
        let listener = retry(|| listen(port));
        std::thread::spawn(move || accept(port, &listener));
    }
    let mut ready = retry(|| connect(services::READY));
    // The host closes its end when it has seen enough.
    let _ = ready.shutdown(std::net::Shutdown::Write);
    let _ = ready.read(&mut [0]);
    if std::process::id() == 1 {
        let again = std::env::args().any(|argument| argument == "reboot");
        let how = if again {
            libc::LINUX_REBOOT_CMD_RESTART
        } else {
            libc::LINUX_REBOOT_CMD_POWER_OFF
        };
        // SAFETY: the call takes no pointers; it does not come back.
        unsafe { libc::reboot(how) };
    }
}

/// The vsock driver may come up after init.
fn retry<T>(mut action: impl FnMut() -> io::Result<T>) -> T {
    loop {
        match action() {
            Ok(value) => return value,
            Err(error) => {
                println!("vsock_guest: {error}; trying again");
                std::thread::sleep(std::time::Duration::from_millis(100));
            }
        }
    }
}

fn accept(port: u32, listener: &OwnedFd) {
    loop {
        // SAFETY: no address is asked for.
        let fd = unsafe {
            libc::accept4(
                listener.as_raw_fd(),
                std::ptr::null_mut(),
                std::ptr::null_mut(),
                libc::SOCK_CLOEXEC,
            )
        };
        if fd < 0 {
            println!("vsock_guest: accept on {port}: {}", io::Error::last_os_error());
            continue;
        }
        // SAFETY: the descriptor is new and ours. That it is no Unix socket matters to no method used.
        let stream = unsafe { UnixStream::from_raw_fd(fd) };
        std::thread::spawn(move || {
            let served = if port == services::CLIENT {
                client(stream)
            } else {
                services::serve(port, stream)
            };
            if let Err(error) = served {
                println!("vsock_guest: service {port}: {error}");
            }
        });
    }
}

fn client(mut stream: UnixStream) -> io::Result<()> {
    let mut parameters = [0; 24];
    stream.read_exact(&mut parameters)?;
    let number = |index: usize| {
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&parameters[index * 8..][..8]);
        u64::from_le_bytes(bytes)
    };
    let report = services::measure(&connect, number(0), number(1) as usize, number(2) as u32)
        .unwrap_or_else(|error| format!("FAILED: {error}\n"));
    stream.write_all(report.as_bytes())
}

fn address(cid: u32, port: u32) -> libc::sockaddr_vm {
    // SAFETY: plain data, for which all zeroes is valid.
    let mut address: libc::sockaddr_vm = unsafe { std::mem::zeroed() };
    address.svm_family = libc::AF_VSOCK as _;
    address.svm_cid = cid;
    address.svm_port = port;
    address
}

fn socket() -> io::Result<OwnedFd> {
    // SAFETY: no pointers.
    let fd = unsafe { libc::socket(libc::AF_VSOCK, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is new and ours.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn checked(result: i32) -> io::Result<()> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

const ADDRESS_SIZE: libc::socklen_t = size_of::<libc::sockaddr_vm>() as _;

fn listen(port: u32) -> io::Result<OwnedFd> {
    let socket = socket()?;
    let address = address(libc::VMADDR_CID_ANY, port);
    // SAFETY: the address is as long as said and outlives the call.
    checked(unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), ADDRESS_SIZE) })?;
    // SAFETY: no pointers.
    checked(unsafe { libc::listen(socket.as_raw_fd(), 1024) })?;
    Ok(socket)
}

fn connect(port: u32) -> io::Result<UnixStream> {
    let socket = socket()?;
    let address = address(libc::VMADDR_CID_HOST, port);
    // SAFETY: the address is as long as said and outlives the call.
    checked(unsafe { libc::connect(socket.as_raw_fd(), (&raw const address).cast(), ADDRESS_SIZE) })?;
    Ok(UnixStream::from(socket))
}
