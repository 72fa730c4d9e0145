//! One client's connection.
//!
//! Each client connection has at most one connection to dockerd, made for its first request. What the client does to its
//! connection is done to dockerd's, once everything before it has been: an end of sending is passed on, a hang-up closes
//! it. dockerd therefore ends a request whose client has gone (`docker logs -f`) as it would without a proxy between.

use std::sync::{Arc, Mutex, PoisonError};
use std::task::Poll;

use bytes::Bytes;
use hyper::body::Incoming;
use hyper::header::{CONTENT_LENGTH, EXPECT, TRANSFER_ENCODING};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tokio::sync::{mpsc, oneshot, watch};

use super::answer;
use super::body::{EndOfExchange, RequestBody, ResponseBody};
use super::exchange::{Exchange, Stage};
use super::limits;
use super::route::{Next, Router};
use super::socket_io::{SocketIo, Watchers, hung_up, sender_gone};
use super::splice::{self, Side};
use super::tap;
use super::upstream::Upstream;
use crate::guest::GuestDial;

/// Why a request got no response. The client's connection is closed without one, as dockerd would leave it.
#[derive(Debug, thiserror::Error)]
pub enum ExchangeError {
    /// dockerd's connection broke, or what came over it was not HTTP.
    #[error("the connection to dockerd broke during a request")]
    Upstream(#[from] hyper::Error),
    /// A body that had to be read whole did not come whole.
    #[error("the client did not send the whole of its request")]
    Client(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// What all connections share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) guest: GuestDial,
    pub(super) router: Router,
}

/// What the requests of one client connection share.
#[derive(Debug)]
pub struct Session {
    shared: Arc<Shared>,
    exchange: Arc<Exchange>,
    /// The connection to dockerd. hyper handles one request at a time, so nobody waits for the lock.
    upstream: Mutex<Option<Upstream>>,
    /// Tells of each new connection to dockerd when that is closed.
    upstream_closed: watch::Sender<Option<watch::Receiver<bool>>>,
    raw: mpsc::Sender<Raw>,
}

/// HTTP on the connection is over: dockerd's stream, and the bytes that came over it, the response's head first.
struct Raw {
    stream: Arc<UnixStream>,
    response: Bytes,
}

/// Serves one client until it or dockerd ends the connection.
pub(super) async fn serve(client: UnixStream, shared: Arc<Shared>) {
    let client = Arc::new(client);
    let io = SocketIo::new(Arc::clone(&client), Watchers::default());
    let unflushed = io.unflushed();
    let (raw_tx, mut raw) = mpsc::channel(1);
    let session = Arc::new(Session {
        shared,
        exchange: Arc::default(),
        upstream: Mutex::new(None),
        upstream_closed: watch::Sender::new(None),
        raw: raw_tx,
    });
    let service = service_fn({
        let session = Arc::clone(&session);
        move |request| Arc::clone(&session).handle(request)
    });
    let mut connection = http1::Builder::new()
        .preserve_header_case(true)
        // dockerd's own Date comes through; berth adds none.
        .auto_date_header(false)
        // What a client's end of sending means is for dockerd to say; see `follow_client`.
        .half_close(true)
        .max_headers(limits::HEADERS)
        .max_buf_size(limits::HEAD_BYTES)
        .serve_connection(TokioIo::new(io), service);

    let mut follow = std::pin::pin!(session.follow_client(&client));
    let mut idle_end = std::pin::pin!(session.upstream_ended_idle());
    let mut draining = false;
    let raw = loop {
        tokio::select! {
            biased;
            Some(raw) = raw.recv() => break raw,
            result = &mut connection => {
                if let Err(error) = result {
                    tracing::debug!(error = &error as &dyn std::error::Error, "a Docker client's connection ended");
                }
                return;
            }
            () = &mut follow => return,
            () = &mut idle_end, if !draining => {
                draining = true;
                std::pin::Pin::new(&mut connection).graceful_shutdown();
            }
        }
    };
    // Answers to earlier, pipelined requests may not have left yet.
    let flushed = std::future::poll_fn(|cx| {
        if !unflushed.load(std::sync::atomic::Ordering::Acquire) {
            return Poll::Ready(true);
        }
        match std::pin::Pin::new(&mut connection).poll(cx) {
            Poll::Ready(_) => Poll::Ready(false),
            Poll::Pending if !unflushed.load(std::sync::atomic::Ordering::Acquire) => Poll::Ready(true),
            Poll::Pending => Poll::Pending,
        }
    });
    if !flushed.await {
        return;
    }
    let parts = connection.into_parts();
    let from_client = Side {
        stream: &client,
        read_ahead: parts.read_buf,
    };
    let from_dockerd = Side {
        stream: &raw.stream,
        read_ahead: raw.response,
    };
    splice::splice(from_client, from_dockerd).await;
}

impl Session {
    async fn handle(
        self: Arc<Self>,
        request: Request<Incoming>,
    ) -> Result<Response<ResponseBody>, ExchangeError> {
        let request = request.map(RequestBody::from_client);
        let found = self.shared.router.find(request.method(), request.uri().path());
        Next::new(&self, &found).run(request).await
    }

    /// Sends a request to dockerd and returns the response, or hands the connection over and never returns.
    pub(super) async fn forward(
        &self,
        mut request: Request<RequestBody>,
    ) -> Result<Response<ResponseBody>, ExchangeError> {
        let (mut upstream, fresh) = match self.take_upstream().await? {
            Ok(upstream) => upstream,
            Err(unavailable) => return Ok(unavailable),
        };
        let method = request.method().clone();
        if expects_continue(&request) {
            let (open, opened) = oneshot::channel();
            request.body_mut().wait_for(opened);
            let open = Mutex::new(Some(open));
            hyper::ext::on_informational(&mut request, move |response| {
                if response.status() == StatusCode::CONTINUE
                    && let Some(open) = open.lock().unwrap_or_else(PoisonError::into_inner).take()
                {
                    // The body may have been dropped with the connection.
                    let _ = open.send(());
                }
            });
        }
        request.body_mut().report_to(Arc::clone(&self.exchange));
        let end = EndOfExchange {
            exchange: Arc::clone(&self.exchange),
            upstream: upstream.task(),
        };
        upstream.tap.arm();
        let response = upstream.sender.send_request(request);
        let tap = Arc::clone(&upstream.tap);
        self.keep(upstream);
        let response = match response.await {
            Ok(response) => response,
            Err(error) if fresh && self.never_answered(&error, &tap) => {
                return Ok(answer::restarting(&error));
            }
            Err(error) => return Err(error.into()),
        };
        if !ends_http(&method, &response) {
            tap.disarm();
            return Ok(response.map(|body| ResponseBody::from_dockerd(body, end)));
        }
        // The request's own body comes before what the client sends next.
        self.exchange.reach(|stage| *stage != Stage::Sending).await;
        let upstream = self.lock().take();
        if let Some(upstream) = upstream {
            let stream = upstream.into_stream().await;
            let response = tap::without_interim(tap.disarm());
            // The connection takes it from here and drops this future.
            let _ = self.raw.send(Raw { stream, response }).await;
        }
        std::future::pending().await
    }

    /// Whether a connection that failed with `error` was closed without a byte of an answer and not because of the client:
    /// that is what guest-init does while dockerd is down, and what a dockerd that is killed does. If so, the connection is
    /// forgotten, so that its end is not taken for that of an idle one.
    ///
    /// Only said of a connection's first request. On one that has served before, clients know themselves that it may end
    /// between two requests, and some ask again by themselves when it does.
    fn never_answered(&self, error: &hyper::Error, tap: &tap::Tap) -> bool {
        if error.is_user() || error.is_parse() || !tap.disarm().is_empty() {
            return false;
        }
        let mut upstream = self.lock();
        if upstream.as_ref().is_some_and(Upstream::is_shut) {
            return false;
        }
        upstream.take();
        true
    }

    /// The connection to dockerd: the one there is, or a new one (then with true); or the answer that tells why there is
    /// none.
    async fn take_upstream(&self) -> Result<Result<(Upstream, bool), Response<ResponseBody>>, ExchangeError> {
        let upstream = self.lock().take();
        if let Some(mut upstream) = upstream.filter(Upstream::usable) {
            // Until hyper has put away the last response it takes no request.
            if upstream.sender.ready().await.is_ok() {
                return Ok(Ok((upstream, false)));
            }
        }
        let stream = match self.shared.guest.connect(protocol::ports::DOCKER).await {
            Ok(stream) => stream,
            Err(error) => return Ok(Err(answer::unavailable(&error))),
        };
        let upstream = Upstream::open(stream, Arc::clone(&self.exchange)).await?;
        self.upstream_closed.send_replace(Some(upstream.closed()));
        Ok(Ok((upstream, true)))
    }

    fn keep(&self, upstream: Upstream) {
        *self.lock() = Some(upstream);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Upstream>> {
        self.upstream.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does to dockerd's connection what the client does to its own; returns when the client is gone and nothing it sent
    /// is still on its way.
    async fn follow_client(&self, client: &UnixStream) {
        let pass_on_end = async {
            if sender_gone(client).await.is_err() {
                return;
            }
            loop {
                self.exchange.reach(|stage| *stage == Stage::Sent).await;
                if let Some(upstream) = &mut *self.lock() {
                    upstream.shut_sending();
                }
                // Another request may have been on the way already; it gets a connection of its own.
                self.exchange.reach(|stage| *stage != Stage::Sent).await;
            }
        };
        let gone = async {
            // While no request is under way hyper reads, and sees the end or the next request by itself.
            let _ = hung_up(client).await;
            self.exchange.reach(|stage| *stage == Stage::Sent).await;
        };
        tokio::select! {
            () = pass_on_end => {}
            () = gone => {}
        }
    }

    /// Returns when dockerd has closed its connection while the client's was idle: the client's is then closed too.
    async fn upstream_ended_idle(&self) {
        let mut connections = self.upstream_closed.subscribe();
        loop {
            let closed = connections.borrow_and_update().clone();
            let Some(mut closed) = closed else {
                let _ = connections.changed().await;
                continue;
            };
            // The sender is dropped only after it has said so.
            let _ = closed.wait_for(|closed| *closed).await;
            self.exchange.reach(|stage| *stage == Stage::Idle).await;
            let ours_to_close = match &*self.lock() {
                Some(upstream) => !upstream.usable() && !upstream.is_shut(),
                None => false,
            };
            if ours_to_close {
                return;
            }
            let _ = connections.changed().await;
        }
    }
}

fn expects_continue(request: &Request<RequestBody>) -> bool {
    request
        .headers()
        .get(EXPECT)
        .is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"100-continue"))
        && request.version() == hyper::Version::HTTP_11
}

/// Whether a response ends HTTP on its connection: an upgrade, or a body that ends only with the connection. dockerd's
/// older way to hand over a raw stream (attach, exec) is the latter, and whatever else looks like it is passed on exactly
/// by the same means.
fn ends_http(method: &Method, response: &Response<Incoming>) -> bool {
    let status = response.status();
    if status == StatusCode::SWITCHING_PROTOCOLS {
        return true;
    }
    if *method == Method::CONNECT && status.is_success() {
        return true;
    }
    let no_body =
        *method == Method::HEAD || status == StatusCode::NO_CONTENT || status == StatusCode::NOT_MODIFIED;
    let headers = response.headers();
    !no_body && !headers.contains_key(CONTENT_LENGTH) && !headers.contains_key(TRANSFER_ENCODING)
}
