//! Bind sources in Docker API calls: named by clients as paths of the host, handed on as the guest knows them.
//!
//! `docker run -v /home/me/src:/src` names a directory of the host. If a share has it, dockerd gets the path it has in the
//! guest, which is mostly the same; if none has it, the call is refused with the command that shares it. What happens to a
//! source that is not there stays with dockerd: it makes the directory for `-v`, which through the share makes it on the
//! host, and refuses it for `--mount`.
//!
//! Acted on are the creation of containers (`HostConfig.Binds`, `HostConfig.Mounts`) and of volumes that are a bind mount
//! in disguise (`docker volume create -o o=bind -o device=/path`). A body in which nothing is to change is passed on byte
//! for byte, and so is everything but the sources in one that is changed ([`json`]).

mod container;
mod json;
mod volume;

#[cfg(test)]
mod tests;

use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::body::Body;
use hyper::header::{CONTENT_LENGTH, EXPECT, HeaderValue, TRAILER, TRANSFER_ENCODING};
use hyper::{Method, Request, Response, StatusCode};

use self::json::Edits;
use super::proxy::route::{Call, Interceptor, Next, Router};
use super::proxy::{ExchangeError, RequestBody, ResponseBody, error};
use crate::shares::sources::{SourceError, Sources};

/// The largest body that is looked into, in bytes. A compose project's labels and configuration come to some kilobytes.
const BODY_LIMIT: usize = 8 << 20;

/// Finds the sources in a body; an error refuses the call.
type Find = fn(&[u8], &Sources) -> Result<Edits, SourceError>;

/// Acts on the calls of one kind.
struct Binds {
    sources: Sources,
    find: Find,
}

/// A router that sends the calls that name sources here.
pub fn router(sources: &Sources) -> Router {
    let binds = |find: Find| {
        Arc::new(Binds {
            sources: sources.clone(),
            find,
        })
    };
    Router::default()
        .on(Method::POST, "/containers/create", binds(container::find))
        .on(Method::POST, "/volumes/create", binds(volume::find))
}

impl Interceptor for Binds {
    fn call<'a>(
        &'a self,
        _: Call,
        request: Request<RequestBody>,
        next: Next<'a>,
    ) -> BoxFuture<'a, Result<Response<ResponseBody>, ExchangeError>> {
        Box::pin(async move {
            match self.look(request).await? {
                Ok(request) => next.run(request).await,
                Err(refusal) => Ok(refusal),
            }
        })
    }
}

impl Binds {
    /// The request as dockerd is to get it, or the answer that refuses it.
    async fn look(
        &self,
        request: Request<RequestBody>,
    ) -> Result<Result<Request<RequestBody>, Response<ResponseBody>>, ExchangeError> {
        let (mut parts, body) = request.into_parts();
        if body.size_hint().lower() > BODY_LIMIT as u64 {
            return Ok(Err(too_large()));
        }
        let body = match Limited::new(body, BODY_LIMIT).collect().await {
            Ok(body) => body.to_bytes(),
            Err(error) if error.is::<LengthLimitError>() => return Ok(Err(too_large())),
            Err(error) => return Err(ExchangeError::Client(error)),
        };
        // Whoever waited to be told to send the body has been, and has sent it.
        parts.headers.remove(EXPECT);
        let edits = tokio::task::spawn_blocking({
            let (body, sources, find) = (body.clone(), self.sources.clone(), self.find);
            // The directories named may be on the network.
            move || find(&body, &sources)
        })
        .await;
        let edits = match edits {
            Ok(Ok(edits)) => edits,
            Ok(Err(refusal)) => {
                tracing::info!("a call was refused: {refusal}");
                return Ok(Err(error(StatusCode::BAD_REQUEST, &refusal.to_string())));
            }
            Err(broken) => {
                tracing::error!(
                    error = &broken as &dyn std::error::Error,
                    "a bind source could not be looked at"
                );
                let message = "berth could not look at the bind sources; see `berth logs`";
                return Ok(Err(error(StatusCode::INTERNAL_SERVER_ERROR, message)));
            }
        };
        if edits.is_empty() {
            return Ok(Ok(Request::from_parts(parts, RequestBody::whole(body))));
        }
        let body = Bytes::from(edits.apply(&body));
        parts.headers.remove(TRANSFER_ENCODING);
        parts.headers.remove(TRAILER);
        parts
            .headers
            .insert(CONTENT_LENGTH, HeaderValue::from(body.len()));
        Ok(Ok(Request::from_parts(parts, RequestBody::whole(body))))
    }
}

fn too_large() -> Response<ResponseBody> {
    error(
        StatusCode::PAYLOAD_TOO_LARGE,
        &format!(
            "the request is too large for berth to look at its bind mounts (at most {} MiB)",
            BODY_LIMIT >> 20
        ),
    )
}
