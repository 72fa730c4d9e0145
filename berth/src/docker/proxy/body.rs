//! The bodies on their way through, wrapped just enough to know when they end.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use tokio::sync::oneshot;

use super::exchange::{Exchange, Stage};
use super::upstream::UpstreamTask;

/// A request's body on its way to dockerd.
#[derive(Debug)]
pub struct RequestBody {
    source: Source,
    exchange: Option<Arc<Exchange>>,
    gate: Gate,
}

#[derive(Debug)]
enum Source {
    Client(Incoming),
    Whole(Full<Bytes>),
}

/// What holds the body back.
#[derive(Debug)]
enum Gate {
    Open,
    /// The client waits for `100 Continue` and so does the body, for dockerd's own.
    Waiting(oneshot::Receiver<()>),
    /// There will be none: the body stays where it is.
    Shut,
}

impl RequestBody {
    pub(super) fn from_client(body: Incoming) -> Self {
        RequestBody {
            source: Source::Client(body),
            exchange: None,
            gate: Gate::Open,
        }
    }

    /// A body that is all there, for an interceptor that has changed what the client sent.
    pub fn whole(bytes: impl Into<Bytes>) -> Self {
        RequestBody {
            source: Source::Whole(Full::new(bytes.into())),
            exchange: None,
            gate: Gate::Open,
        }
    }

    /// Holds the body back until `open` is sent something.
    pub(super) fn wait_for(&mut self, open: oneshot::Receiver<()>) {
        self.gate = Gate::Waiting(open);
    }

    /// Reports the end of the body to `exchange`, which begins here.
    pub(super) fn report_to(&mut self, exchange: Arc<Exchange>) {
        exchange.begin(!self.is_end_stream());
        self.exchange = Some(exchange);
    }

    fn poll_gate(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if let Gate::Waiting(open) = &mut self.gate {
            self.gate = match ready!(Pin::new(open).poll(cx)) {
                Ok(()) => Gate::Open,
                Err(_) => Gate::Shut,
            };
        }
        match self.gate {
            Gate::Open => Poll::Ready(()),
            _ => Poll::Pending,
        }
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        ready!(self.poll_gate(cx));
        let frame = match &mut self.source {
            Source::Client(body) => ready!(Pin::new(body).poll_frame(cx)),
            Source::Whole(body) => {
                ready!(Pin::new(body).poll_frame(cx)).map(|frame| frame.map_err(|never| match never {}))
            }
        };
        // hyper does not ask again after a last frame that says that it is the last, or that is trailers.
        let last = match &frame {
            None => true,
            Some(Ok(frame)) => frame.is_trailers() || self.is_end_stream(),
            Some(Err(_)) => false,
        };
        if last && let Some(exchange) = &self.exchange {
            exchange.body_ended();
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        match &self.source {
            Source::Client(body) => body.is_end_stream(),
            Source::Whole(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.source {
            Source::Client(body) => body.size_hint(),
            Source::Whole(body) => body.size_hint(),
        }
    }
}

/// A response's body on its way to the client.
#[derive(Debug)]
pub struct ResponseBody(Response);

#[derive(Debug)]
enum Response {
    Dockerd {
        body: Incoming,
        /// Ends the exchange when the body is over or dropped.
        _end: EndOfExchange,
    },
    Whole(Full<Bytes>),
}

impl ResponseBody {
    pub(super) fn from_dockerd(body: Incoming, end: EndOfExchange) -> Self {
        ResponseBody(Response::Dockerd { body, _end: end })
    }

    /// A body that is all there, for berth's own answers.
    pub fn whole(bytes: impl Into<Bytes>) -> Self {
        ResponseBody(Response::Whole(Full::new(bytes.into())))
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        match &mut self.0 {
            Response::Dockerd { body, .. } => Pin::new(body).poll_frame(cx),
            Response::Whole(body) => Pin::new(body)
                .poll_frame(cx)
                .map(|frame| frame.map(|frame| frame.map_err(|never| match never {}))),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.0 {
            Response::Dockerd { body, .. } => body.is_end_stream(),
            Response::Whole(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.0 {
            Response::Dockerd { body, .. } => body.size_hint(),
            Response::Whole(body) => body.size_hint(),
        }
    }
}

/// Ends an exchange when dropped.
#[derive(Debug)]
pub(super) struct EndOfExchange {
    pub(super) exchange: Arc<Exchange>,
    pub(super) upstream: UpstreamTask,
}

impl Drop for EndOfExchange {
    fn drop(&mut self) {
        // dockerd has answered without wanting all of the request: the rest of it must not be taken for the next one.
        if self.exchange.stage() == Stage::Sending {
            self.upstream.abort();
        }
        self.exchange.end();
    }
}
