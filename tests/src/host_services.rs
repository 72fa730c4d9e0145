//! Servers on the host's loopback that containers reach through the machine's network.

use std::fs;
use std::io::{self, BufRead, BufReader, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
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
        Registry::start_with(dir, "")
    }

    /// Starts one that speaks HTTPS, with a certificate of its own that nobody has signed; the certificate's file.
    ///
    /// # Errors
    /// As [`Registry::start`], and when there is no openssl to make the certificate.
    pub fn start_with_tls(dir: &Path) -> Result<(Registry, PathBuf)> {
        let (certificate, key) = (dir.join("certificate.pem"), dir.join("key.pem"));
        Program::new("openssl")
            .args(["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "30"])
            .args(["-subj", "/CN=berth's tests", "-addext"])
            .arg(format!("subjectAltName=IP:{HOST_FROM_GUEST}"))
            .arg("-out")
            .arg(&certificate)
            .arg("-keyout")
            .arg(&key)
            .ok()
            .context("cannot make a certificate; on Debian: apt install openssl")?;
        let tls = format!(
            "  tls:\n    certificate: {}\n    key: {}\n",
            certificate.display(),
            key.display()
        );
        Ok((Registry::start_with(dir, &tls)?, certificate))
    }

    fn start_with(dir: &Path, http: &str) -> Result<Registry> {
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
                "version: 0.1\nlog:\n  level: warn\nstorage:\n  filesystem:\n    rootdirectory: {}\nhttp:\n  addr: 127.0.0.1:{port}\n{http}",
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

    /// Its port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The full name of an image in it, as the guest's dockerd has to call it.
    pub fn image(&self, name: &str) -> String {
        format!("{HOST_FROM_GUEST}:{}/{name}", self.port)
    }
}

/// An HTTP proxy on the host's loopback. It takes every host for the loopback, so that names may be invented and nothing
/// leaves this machine, and remembers who was asked for. It lives as long as the test program.
pub struct HttpProxy {
    port: u16,
    asked: Arc<Mutex<Vec<String>>>,
}

impl HttpProxy {
    /// Starts it on a free port.
    ///
    /// # Errors
    /// When there is no port.
    pub fn start() -> Result<HttpProxy> {
        let listener =
            TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("cannot listen on the loopback")?;
        let port = listener.local_addr().context("cannot tell the port")?.port();
        let asked: Arc<Mutex<Vec<String>>> = Arc::default();
        let remember = Arc::clone(&asked);
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let remember = Arc::clone(&remember);
                // A client that goes away in the middle is not the proxy's failure.
                thread::spawn(move || drop(pass_on(client, &remember)));
            }
        });
        Ok(HttpProxy { port, asked })
    }

    /// Its port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Who was asked for so far: the method, the host and its port.
    pub fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Serves one connection, which has one request.
fn pass_on(client: TcpStream, asked: &Mutex<Vec<String>>) -> io::Result<()> {
    let mut reader = BufReader::new(client.try_clone()?);
    let mut first = String::new();
    reader.read_line(&mut first)?;
    let words: Vec<&str> = first.split_ascii_whitespace().collect();
    let [method, target, version] = words[..] else {
        return Err(io::ErrorKind::InvalidData.into());
    };
    // `host:port` for CONNECT, else `http://host:port/path`.
    let target = target.strip_prefix("http://").unwrap_or(target);
    let (place, path) = target.split_at(target.find('/').unwrap_or(target.len()));
    asked
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .push(format!("{method} {place}"));
    let port = place.rsplit(':').next().and_then(|port| port.parse().ok());
    let mut server = TcpStream::connect((Ipv4Addr::LOCALHOST, port.unwrap_or(80)))?;
    let mut head = String::new();
    while reader.read_line(&mut head)? > 2 {}
    if method == "CONNECT" {
        (&client).write_all(b"HTTP/1.1 200 Connected\r\n\r\n")?;
    } else {
        write!(server, "{method} {path} {version}\r\nConnection: close\r\n{head}")?;
    }
    let (mut from_server, mut to_client) = (server.try_clone()?, client.try_clone()?);
    let answering = thread::spawn(move || {
        let copied = io::copy(&mut from_server, &mut to_client);
        let _ = to_client.shutdown(Shutdown::Both);
        copied
    });
    io::copy(&mut reader, &mut server)?;
    let _ = server.shutdown(Shutdown::Write);
    let _ = answering.join();
    Ok(())
}
