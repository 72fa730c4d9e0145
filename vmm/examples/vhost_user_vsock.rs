//! Serves the vsock device to a vhost-user front end, with echo, sink and source services on the host's side, and measures
//! the streams once a guest that runs the `vsock_guest` example reports: in both directions, every byte checked.
//!
//! ```text
//! vhost_user_vsock SOCKET [MIB [CONNECTIONS [ROUND_TRIPS]]]
//! ```
//!
//! For QEMU: `-object memory-backend-memfd,id=mem,size=…,share=on -machine memory-backend=mem
//! -chardev socket,id=vs,path=SOCKET -device vhost-user-vsock-device,chardev=vs`.

use std::{
    error::Error,
    io::{self, Read},
    os::unix::net::{UnixListener, UnixStream},
};

use vmm::{
    vhost_user::VhostUserServer,
    virtio::vsock::{VsockHost, vsock},
};

#[path = "vsock/services.rs"]
mod services;

const GUEST_CID: u64 = 3;

fn main() -> Result<(), Box<dyn Error>> {
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
        .with_writer(io::stderr)
        .init();
    let mut arguments = std::env::args().skip(1);
    let path = arguments
        .next()
        .ok_or("usage: vhost_user_vsock SOCKET [MIB [CONNECTIONS [ROUND_TRIPS]]]")?;
    let mut number = |default: u64| arguments.next().map_or(Ok(default), |text| text.parse());
    let (mib, connections, round_trips) = (number(256)?, number(200)?, number(2000)?);

    let (device, host) = vsock(GUEST_CID)?;
    for port in [services::ECHO, services::SINK, services::SOURCE] {
        let mut incoming = host.listen(port)?;
        std::thread::spawn(move || {
            while let Some(stream) = incoming.blocking_recv() {
                std::thread::spawn(move || {
                    if let Err(error) = services::serve(port, stream) {
                        eprintln!("service {port}: {error}");
                    }
                });
            }
        });
    }
    let mut ready = host.listen(services::READY)?;
    let server = VhostUserServer::spawn("vsock", UnixListener::bind(&path)?, Box::new(device))?;
    println!("waiting for a front end on {path}");

    // One report for each time the guest starts; the end of the front end ends the program.
    let measured = host.clone();
    std::thread::spawn(move || {
        while let Some(mut stream) = ready.blocking_recv() {
            let parameters = (mib << 20, connections as usize, round_trips as u32);
            match report(&measured, parameters) {
                Ok(()) => println!("{:#?}\nall measures done", measured.stats()),
                Err(error) => println!("FAILED: {error}\n{:#?}", measured.stats()),
            }
            // The guest goes on when this stream ends.
            let _ = stream.read(&mut [0]);
        }
    });
    server.wait()?;
    println!("the front end has gone: {:?}", host.stats());
    Ok(())
}

fn report(
    host: &VsockHost,
    (bulk, connections, round_trips): (u64, usize, u32),
) -> Result<(), Box<dyn Error>> {
    println!("host to guest:");
    let connect = |port| connect(host, port);
    print!("{}", services::measure(&connect, bulk, connections, round_trips)?);
    println!("guest to host:");
    let mut stream = connect(services::CLIENT)?;
    let mut text = String::new();
    io::Write::write_all(
        &mut stream,
        &[bulk, connections as u64, u64::from(round_trips)]
            .map(u64::to_le_bytes)
            .concat(),
    )?;
    stream.read_to_string(&mut text)?;
    print!("{text}");
    if text.contains("FAILED") {
        return Err("the guest's measures failed".into());
    }
    Ok(())
}

fn connect(host: &VsockHost, port: u32) -> io::Result<UnixStream> {
    match host.connect(port).blocking_recv() {
        Ok(Ok(stream)) => Ok(stream),
        Ok(Err(error)) => Err(io::Error::other(error)),
        Err(error) => Err(io::Error::other(error)),
    }
}
