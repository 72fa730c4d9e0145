//! The setting `network.proxy`: which proxies the Docker daemon uses in place of this host's.

use std::fmt;

use serde::Deserialize;
use serde::de::value::MapAccessDeserializer;
use serde::de::{Deserializer, Error, MapAccess, Unexpected, Visitor};

use super::values::ProxyUrl;
use crate::net::Proxies;

/// What it says.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Proxy(pub(super) Proxies);

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Lines {
    http: Option<ProxyUrl>,
    https: Option<ProxyUrl>,
    no_proxy: Option<String>,
}

struct Expected;

impl<'de> Visitor<'de> for Expected {
    type Value = Proxy;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("`none`, or `http`, `https` and `no_proxy`")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Proxy, E> {
        match text {
            "none" => Ok(Proxy(Proxies::default())),
            _ => Err(E::invalid_value(Unexpected::Str(text), &self)),
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Proxy, A::Error> {
        let lines = Lines::deserialize(MapAccessDeserializer::new(map))?;
        Ok(Proxy(Proxies {
            http: lines.http.map(|url| url.0),
            https: lines.https.map(|url| url.0),
            no_proxy: lines.no_proxy,
        }))
    }
}

impl<'de> Deserialize<'de> for Proxy {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Expected)
    }
}
