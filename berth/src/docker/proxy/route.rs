//! Which API call a request is, and who acts on it.
//!
//! dockerd takes every path with and without a version (`/v1.47/info`, `/info`); an interceptor sees the path without. A call
//! that several routes are for goes through their interceptors one after the other. Without routes, everything passes through.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures_util::future::BoxFuture;
use hyper::{Method, Request, Response};

use super::body::{RequestBody, ResponseBody};
use super::connection::{ExchangeError, Session};

/// Acts on the API calls it is registered for.
pub trait Interceptor: Send + Sync {
    /// Handles a call: answers it, or changes the request, or passes it on with [`Next::run`] and looks at the response.
    fn call<'a>(
        &'a self,
        call: Call,
        request: Request<RequestBody>,
        next: Next<'a>,
    ) -> BoxFuture<'a, Result<Response<ResponseBody>, ExchangeError>>;
}

/// The way on to dockerd, past the interceptors that are still to come.
#[derive(Clone, Copy)]
pub struct Next<'a> {
    session: &'a Session,
    rest: &'a [Found],
}

impl<'a> Next<'a> {
    /// The way past all of `found`.
    pub(super) fn new(session: &'a Session, found: &'a [Found]) -> Self {
        Next { session, rest: found }
    }

    /// Sends the request on, at last to dockerd. The future does not return when dockerd takes the connection over for a raw
    /// stream.
    pub async fn run(self, request: Request<RequestBody>) -> Result<Response<ResponseBody>, ExchangeError> {
        match self.rest.split_first() {
            Some((found, rest)) => {
                let next = Next { rest, ..self };
                found.interceptor.call(found.call.clone(), request, next).await
            }
            None => self.session.forward(request).await,
        }
    }
}

impl std::fmt::Debug for Next<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let calls = self.rest.iter().map(|found| &found.call);
        f.debug_list().entries(calls).finish()
    }
}

/// An interceptor for a request, and the call as it sees it.
pub(super) struct Found {
    interceptor: Arc<dyn Interceptor>,
    pub(super) call: Call,
}

/// The API call of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    /// The API version in the path, if there was one.
    pub version: Option<(u16, u16)>,
    /// What the route's `{name}` parts stood for, percent-encoding and all.
    pub parameters: BTreeMap<&'static str, String>,
}

/// A pattern of paths: literal parts, `{name}` for one part, `{name..}` for one or more (an image's name has slashes).
#[derive(Debug, Clone, Copy)]
struct Pattern(&'static str);

impl Pattern {
    fn matches(self, path: &str) -> Option<BTreeMap<&'static str, String>> {
        let mut parameters = BTreeMap::new();
        let pattern: Vec<&'static str> = self.0.split('/').collect();
        let path: Vec<&str> = path.split('/').collect();
        match_parts(&pattern, &path, &mut parameters).then_some(parameters)
    }
}

fn match_parts(
    pattern: &[&'static str],
    path: &[&str],
    parameters: &mut BTreeMap<&'static str, String>,
) -> bool {
    let Some((part, pattern)) = pattern.split_first() else {
        return path.is_empty();
    };
    match part.strip_prefix('{').and_then(|part| part.strip_suffix('}')) {
        None => path.first() == Some(part) && match_parts(pattern, &path[1..], parameters),
        Some(name) => {
            let (name, longest) = match name.strip_suffix("..") {
                Some(name) => (name, path.len()),
                None => (name, path.len().min(1)),
            };
            for length in (1..=longest).rev() {
                let (value, rest) = path.split_at(length);
                if value.iter().all(|part| !part.is_empty()) && match_parts(pattern, rest, parameters) {
                    parameters.insert(name, value.join("/"));
                    return true;
                }
            }
            false
        }
    }
}

/// Splits the API version off a path.
fn split_version(path: &str) -> (Option<(u16, u16)>, &str) {
    let version = || {
        let rest = path.strip_prefix("/v")?;
        let (version, after) = rest.split_at(rest.find('/')?);
        let (major, minor) = version.split_once('.')?;
        let number = |text: &str| {
            let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
            digits.then(|| text.parse().ok()).flatten()
        };
        Some(((number(major)?, number(minor)?), after))
    };
    match version() {
        Some((version, rest)) => (Some(version), rest),
        None => (None, path),
    }
}

struct Route {
    method: Method,
    pattern: Pattern,
    interceptor: Arc<dyn Interceptor>,
}

/// Which interceptors get which calls, in the order in which they were added.
#[derive(Default)]
pub struct Router(Vec<Route>);

impl Router {
    /// Adds a route. `pattern` is a path without the version, such as `/containers/{id}/start`.
    #[must_use]
    pub fn on(mut self, method: Method, pattern: &'static str, interceptor: Arc<dyn Interceptor>) -> Self {
        self.0.push(Route {
            method,
            pattern: Pattern(pattern),
            interceptor,
        });
        self
    }

    /// The interceptors for a request.
    pub(super) fn find(&self, method: &Method, path: &str) -> Vec<Found> {
        if self.0.is_empty() {
            return Vec::new();
        }
        let (version, path) = split_version(path);
        self.0
            .iter()
            .filter(|route| route.method == *method)
            .filter_map(|route| {
                let parameters = route.pattern.matches(path)?;
                Some(Found {
                    interceptor: Arc::clone(&route.interceptor),
                    call: Call { version, parameters },
                })
            })
            .collect()
    }
}

impl std::fmt::Debug for Router {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let routes = self.0.iter().map(|route| (&route.method, route.pattern.0));
        f.debug_list().entries(routes).finish()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    struct Nobody;

    impl Interceptor for Nobody {
        fn call<'a>(
            &'a self,
            _: Call,
            request: Request<RequestBody>,
            next: Next<'a>,
        ) -> BoxFuture<'a, Result<Response<ResponseBody>, ExchangeError>> {
            Box::pin(next.run(request))
        }
    }

    fn find(pattern: &'static str, path: &str) -> Option<Call> {
        let router = Router::default().on(Method::POST, pattern, Arc::new(Nobody));
        assert!(router.find(&Method::GET, path).is_empty(), "another method");
        let mut found = router.find(&Method::POST, path).into_iter();
        found.next().map(|found| found.call)
    }

    #[test]
    fn a_path_is_found_with_and_without_a_version() {
        let with = find("/containers/{id}/start", "/v1.47/containers/ab12/start").unwrap();
        assert_eq!(with.version, Some((1, 47)));
        assert_eq!(with.parameters["id"], "ab12");
        let without = find("/containers/{id}/start", "/containers/ab12/start").unwrap();
        assert_eq!(without.version, None);
        assert_eq!(without.parameters, with.parameters);
    }

    #[test]
    fn other_paths_are_not_found() {
        for path in [
            "/containers/start",
            "/containers//start",
            "/containers/a/b/start",
            "/containers/a/start/",
            "/v1/containers/a/start",
            "/v1.x/containers/a/start",
            "/v1.+4/containers/a/start",
            "/v1.47/v1.47/containers/a/start",
            "",
            "*",
        ] {
            assert_eq!(find("/containers/{id}/start", path), None, "{path}");
        }
    }

    #[test]
    fn a_name_may_have_slashes_where_the_pattern_says_so() {
        let call = find(
            "/images/{name..}/push",
            "/v1.47/images/localhost:5000/a/push/push",
        )
        .unwrap();
        assert_eq!(call.parameters["name"], "localhost:5000/a/push");
        assert_eq!(find("/images/{name..}/push", "/images/push"), None);
    }

    proptest! {
        #[test]
        fn any_path_is_parsed_without_a_panic(path in "[/v.0-9a-z{}]{0,40}") {
            let (version, rest) = split_version(&path);
            prop_assert!(path.ends_with(rest));
            prop_assert_eq!(version.is_none(), rest.len() == path.len());
            let _ = find("/images/{name..}/{x}", &path);
        }
    }
}
