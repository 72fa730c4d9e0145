//! berth's own answers, in the form dockerd gives its errors: a JSON object with a `message`.

use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::{Response, StatusCode};

use super::body::ResponseBody;
use crate::guest::DialError;

/// An error as dockerd would answer it.
pub fn error(status: StatusCode, message: &str) -> Response<ResponseBody> {
    let body = serde_json::json!({ "message": message }).to_string() + "\n";
    let mut response = Response::new(ResponseBody::whole(body));
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// dockerd cannot be reached.
pub(super) fn unavailable(error_: &DialError) -> Response<ResponseBody> {
    let message = match error_ {
        DialError::Refused(_) => {
            "Docker is not running in the berth machine (it may still be starting, or be restarting after a failure); \
             see `berth status` and `berth logs --source dockerd`"
        }
        DialError::NoGuest(_) => {
            "the berth machine is not up (it may still be starting); see `berth status`, or start it with `berth start`"
        }
        DialError::Io(_) => "berth could not open a connection to the machine; see `berth logs`",
    };
    tracing::warn!(
        error = error_ as &dyn std::error::Error,
        "a Docker client could not be served"
    );
    error(StatusCode::SERVICE_UNAVAILABLE, message)
}

/// dockerd closed a new connection without a word.
pub(super) fn restarting(error_: &hyper::Error) -> Response<ResponseBody> {
    tracing::warn!(
        error = error_ as &dyn std::error::Error,
        "dockerd closed a connection without an answer"
    );
    error(
        StatusCode::SERVICE_UNAVAILABLE,
        "Docker is restarting in the guest, or ended before it could answer; try again in a moment, and see `berth status` \
         and `berth logs --source dockerd` if it does not come back",
    )
}
