//! Servers on the host's loopback that containers reach through the machine's network.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::Path;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::options::on_path;
use crate::processes::wait_until;
use crate::program::{Program, Running};

/// The address by which the guest reaches the host's loopback (`docs/seams.md`, "Network").
pub const HOST_FROM_GUEST: &str = "192.168.127.1";

/// An HTTP server that answers every request with one text. It lives as long as the test program.
pub struct HttpServer {
    port: u16,
}

impl HttpServer {
    /// Starts it on a free port of the host's loopback.
    ///
    /// # Errors
    /// When there is no port.
    pub fn start(text: &'static str) -> Result<HttpServer> {
        let listener =
            TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("cannot listen on the loopback")?;
        let port = listener.local_addr().context("cannot tell the port")?.port();
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                // A client that goes away in the middle is not the server's failure.
                thread::spawn(move || drop(answer(stream, text)));
            }
        });
        Ok(HttpServer { port })
    }

    /// Its port.
    pub fn port(&self) -> u16 {
        self.port
    }
}

fn answer(mut stream: TcpStream, text: &str) -> std::io::Result<()> {
    for line in BufReader::new(stream.try_clone()?).lines() {
        if line?.is_empty() {
            break;
        }
    }
    write!(
        stream,
        "HTTP/1.0 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{text}",
        text.len()
    )
}

/// Debian's docker-registry on the host's loopback, with its store in a directory. It ends when this is dropped.
pub struct Registry {
    port: u16,
    _server: Running,
}

impl Registry {
    /// Starts it and waits until it answers.
    ///
    /// # Errors
    /// When it is not installed or does not answer.
    pub fn start(dir: &Path) -> Result<Registry> {
        let program = on_path("docker-registry")
            .context("there is no docker-registry; on Debian: apt install docker-registry")?;
        // Free a moment ago; that another program takes it in between is possible and would be a visible failure.
        let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
            .and_then(|listener| listener.local_addr())
            .context("cannot find a free port")?
            .port();
        let store = dir.join("registry");
        let config = dir.join("registry.yml");
        fs::write(
            &config,
            format!(
                "version: 0.1\nlog:\n  level: warn\nstorage:\n  filesystem:\n    rootdirectory: {}\nhttp:\n  addr: 127.0.0.1:{port}\n",
                store.display()
            ),
        )
        .context("cannot write the registry's configuration")?;
        let server = Program::new(program).arg("serve").arg(&config).spawn()?;
        let registry = Registry {
            port,
            _server: server,
        };
        wait_until("the registry to listen", Duration::from_secs(60), || {
            Ok(TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_ok())
        })?;
        Ok(registry)
    }

    /// The full name of an image in it, as the guest's dockerd has to call it.
    pub fn image(&self, name: &str) -> String {
        format!("{HOST_FROM_GUEST}:{}/{name}", self.port)
    }
}
