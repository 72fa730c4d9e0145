//! Edit on the host, then `docker exec`: the edit is there.
//!
//! Changes of shared files on the host are told to the guest as they happen, which takes some milliseconds. A Docker API call
//! that starts a container, enters one, or builds waits here until the guest has been told of all that happened before the
//! call. A machine that cannot be told, or not in time, is no reason to refuse the call: its caches are right again a little
//! later.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::BoxFuture;
use hyper::{Method, Request, Response};

use super::proxy::route::{Call, Interceptor, Next, Router};
use super::proxy::{ExchangeError, RequestBody, ResponseBody};
use crate::exit::chain;

/// How long a call waits at most. What takes longer is a guest in trouble, or more changes than anybody waits for.
const LIMIT: Duration = Duration::from_secs(2);

/// The calls that wait, all of them POST.
const CALLS: &[&str] = &[
    "/build",
    "/containers/create",
    "/containers/{id}/attach",
    "/containers/{id}/exec",
    "/containers/{id}/restart",
    "/containers/{id}/start",
    "/containers/{id}/unpause",
    "/exec/{id}/start",
];

/// The moment when the guest knows what has happened on the host.
pub trait Barrier: Send + Sync {
    /// Returns when the guest has been told of every change made before this call, or why it will not be.
    fn reach(&self) -> BoxFuture<'static, Result<(), anyhow::Error>>;
}

/// `router`, and after its own routes those of the calls that wait for `barrier`: until the guest knows all host changes.
#[must_use]
pub fn behind(router: Router, barrier: Arc<dyn Barrier>) -> Router {
    let wait = Arc::new(Wait {
        barrier,
        what: "host changes",
        limit: LIMIT,
    });
    CALLS.iter().fold(router, |router, call| {
        router.on(Method::POST, call, Arc::clone(&wait) as Arc<dyn Interceptor>)
    })
}

/// `router`, and after its own routes one for all calls, which wait until the guest's clock is right.
#[must_use]
pub fn behind_clock(router: Router, clock: Arc<dyn Barrier>) -> Router {
    let wait = Arc::new(Wait {
        barrier: clock,
        what: "the guest's clock",
        // A paused machine answers when it goes on. What comes after that has a limit of its own.
        limit: Duration::MAX,
    });
    [
        Method::GET,
        Method::HEAD,
        Method::POST,
        Method::PUT,
        Method::DELETE,
    ]
    .into_iter()
    .fold(router, |router, method| {
        router.on(method, "/{call..}", Arc::clone(&wait) as Arc<dyn Interceptor>)
    })
}

/// Holds calls back.
struct Wait {
    barrier: Arc<dyn Barrier>,
    /// What for.
    what: &'static str,
    /// How long at most.
    limit: Duration,
}

impl Interceptor for Wait {
    fn call<'a>(
        &'a self,
        _: Call,
        request: Request<RequestBody>,
        next: Next<'a>,
    ) -> BoxFuture<'a, Result<Response<ResponseBody>, ExchangeError>> {
        Box::pin(async move {
            let since = Instant::now();
            let (what, limit) = (self.what, self.limit);
            match tokio::time::timeout(limit, self.barrier.reach()).await {
                Ok(Ok(())) => {
                    let path = request.uri().path();
                    tracing::trace!(path, waited = ?since.elapsed(), "a Docker call need not wait for {what} any more");
                }
                Ok(Err(why)) => {
                    tracing::debug!("a Docker call does not wait for {what}: {}", chain(&why));
                }
                Err(_) => tracing::warn!(
                    path = request.uri().path(),
                    "a Docker call has waited {limit:?} for {what}, and goes on without"
                ),
            }
            next.run(request).await
        })
    }
}
