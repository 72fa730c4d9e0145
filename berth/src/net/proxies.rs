//! The host's HTTP proxies, for the Docker daemon to pull through.

use serde_json::{Value, json};

use super::GATEWAY;

/// The longest of the three settings, in bytes.
const LONGEST: usize = 4096;
/// What no proxy can reach, because only the guest calls it so.
const ALWAYS_DIRECT: [&str; 3] = ["host.docker.internal", "gateway.docker.internal", "192.168.127.1"];

/// Proxies as the usual environment variables name them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Proxies {
    /// For plain HTTP.
    pub http: Option<String>,
    /// For HTTPS.
    pub https: Option<String>,
    /// Hosts to be reached without one, separated by commas.
    pub no_proxy: Option<String>,
}

impl Proxies {
    /// Those of an environment whose variables `get` looks up. Upper case comes first, as for Docker itself.
    pub fn from_env(get: impl Fn(&str) -> Option<String>) -> Proxies {
        let find = |name: &str| {
            [name.to_owned(), name.to_ascii_lowercase()]
                .into_iter()
                .filter_map(|name| get(&name))
                .find(|value| !value.is_empty())
        };
        Proxies {
            http: find("HTTP_PROXY"),
            https: find("HTTPS_PROXY"),
            no_proxy: find("NO_PROXY"),
        }
    }

    /// The setting `proxies` for dockerd, seen from the guest; none when there is no proxy.
    ///
    /// # Errors
    /// When a setting cannot be used; the message names it, but no password that may be in it.
    pub fn for_dockerd(&self) -> Result<Option<Value>, String> {
        if self.http.is_none() && self.https.is_none() {
            return Ok(None);
        }
        let mut settings = serde_json::Map::new();
        for (key, proxy) in [("http-proxy", &self.http), ("https-proxy", &self.https)] {
            if let Some(proxy) = proxy {
                let seen = seen_from_the_guest(proxy).ok_or_else(|| {
                    format!("the {key} of this host is no URL of a proxy, such as http://proxy.example:3128")
                })?;
                settings.insert(key.into(), json!(seen));
            }
        }
        let mut direct: Vec<&str> = ALWAYS_DIRECT.to_vec();
        if let Some(no_proxy) = &self.no_proxy {
            if !is_sane(no_proxy) {
                return Err(
                    "the no-proxy of this host is no list of hosts, such as localhost,.example".into(),
                );
            }
            direct.extend(no_proxy.split(',').map(str::trim).filter(|host| !host.is_empty()));
        }
        settings.insert("no-proxy".into(), json!(direct.join(",")));
        Ok(Some(Value::Object(settings)))
    }
}

/// Whether `text` can be the URL of a proxy.
pub fn is_proxy(text: &str) -> bool {
    seen_from_the_guest(text).is_some()
}

fn is_sane(text: &str) -> bool {
    text.len() <= LONGEST && !text.contains(char::is_control)
}

/// The same proxy for the guest: one on the host's loopback is behind the gateway there. None when it is no URL of one.
fn seen_from_the_guest(proxy: &str) -> Option<String> {
    let proxy = proxy.trim();
    if !is_sane(proxy) || proxy.contains(char::is_whitespace) {
        return None;
    }
    let (scheme, rest) = proxy.split_once("://").unwrap_or(("http", proxy));
    if !["http", "https", "socks5", "socks5h"].contains(&scheme.to_ascii_lowercase().as_str()) {
        return None;
    }
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let (authority, path) = rest.split_at(end);
    let (user, place) = match authority.rsplit_once('@') {
        Some((user, place)) => (format!("{user}@"), place),
        None => (String::new(), authority),
    };
    let (host, port) = match place.strip_prefix('[') {
        Some(rest) => rest.split_once(']')?,
        None => place.split_at(place.rfind(':').unwrap_or(place.len())),
    };
    let good_port = port.is_empty()
        || port
            .strip_prefix(':')
            .is_some_and(|port| port.parse::<u16>().is_ok());
    if host.is_empty() || !good_port {
        return None;
    }
    if is_loopback(host) {
        Some(format!("{scheme}://{user}{GATEWAY}{port}{path}"))
    } else {
        Some(format!("{scheme}://{rest}"))
    }
}

fn is_loopback(host: &str) -> bool {
    let name = host.trim_end_matches('.').to_ascii_lowercase();
    let address = host.parse::<std::net::IpAddr>();
    name == "localhost"
        || name.ends_with(".localhost")
        || address.is_ok_and(|address| address.to_canonical().is_loopback())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_proxy_on_the_loopback_is_behind_the_gateway() {
        for (on_host, in_guest) in [
            ("http://localhost:3128", "http://192.168.127.1:3128"),
            ("127.0.0.1:3128", "http://192.168.127.1:3128"),
            (
                "http://me:p%40ss@127.1.2.3:80/",
                "http://me:p%40ss@192.168.127.1:80/",
            ),
            ("https://[::1]:3128", "https://192.168.127.1:3128"),
            ("socks5://LocalHost", "socks5://192.168.127.1"),
            ("http://proxy.example:3128/", "http://proxy.example:3128/"),
            ("proxy.example", "http://proxy.example"),
            ("http://[2001:db8::1]:3128", "http://[2001:db8::1]:3128"),
            // The user is not the host.
            (
                "http://localhost:x@proxy.example",
                "http://localhost:x@proxy.example",
            ),
        ] {
            assert_eq!(
                seen_from_the_guest(on_host).as_deref(),
                Some(in_guest),
                "{on_host}"
            );
        }
        for wrong in [
            "",
            "ftp://a",
            "http://",
            "http://a b",
            "http://a:port",
            "http://[::1",
            "http://a\nb",
        ] {
            assert_eq!(seen_from_the_guest(wrong), None, "{wrong:?}");
        }
    }

    #[test]
    fn the_environment_is_read_as_docker_reads_it() {
        let get = |name: &str| {
            let value = match name {
                "HTTP_PROXY" => "http://upper:1",
                "http_proxy" => "http://lower:1",
                "HTTPS_PROXY" => "",
                "https_proxy" => "http://127.0.0.1:2",
                "no_proxy" => "localhost, .example,",
                _ => return None,
            };
            Some(value.into())
        };
        assert_eq!(
            Proxies::from_env(get).for_dockerd().unwrap().unwrap(),
            json!({
                "http-proxy": "http://upper:1",
                "https-proxy": "http://192.168.127.1:2",
                "no-proxy": "host.docker.internal,gateway.docker.internal,192.168.127.1,localhost,.example",
            })
        );
        assert_eq!(Proxies::from_env(|_| None).for_dockerd(), Ok(None));
    }

    #[test]
    fn a_wrong_one_is_told_without_what_may_be_secret() {
        let proxies = Proxies {
            http: Some("gopher://me:secret@x".into()),
            ..Proxies::default()
        };
        let error = proxies.for_dockerd().unwrap_err();
        assert!(
            error.contains("http-proxy") && !error.contains("secret"),
            "{error}"
        );
    }

    proptest! {
        #[test]
        fn any_text_is_a_proxy_or_none(text in "(http://|\\[|\\]|@|:|/|[a-z0-9.]|.){0,20}") {
            if let Some(seen) = seen_from_the_guest(&text) {
                prop_assert!(is_proxy(&seen));
            }
        }
    }
}
