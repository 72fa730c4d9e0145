//! The description of the daemon's HTTP interface (`docs/openapi.yaml`), and whether what the daemon says is as described.
//!
//! Of JSON Schema only what the description uses is understood. Anything else in it is an error, so that nothing in the
//! description goes unchecked.

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Map, Value};

/// Words of a schema that say nothing of what is valid.
const SILENT: &[&str] = &["description", "summary"];

/// The description.
pub struct OpenApi(Value);

impl OpenApi {
    /// That of this tree.
    ///
    /// # Errors
    /// When it is not YAML.
    pub fn load() -> Result<OpenApi> {
        let text = include_str!("../../docs/openapi.yaml");
        let whole = serde_yaml::from_str(text).context("docs/openapi.yaml")?;
        Ok(OpenApi(whole))
    }

    /// Checks an answer, or a line of one, against what is described for it.
    ///
    /// # Errors
    /// When it is not described, or is otherwise than described; the message says where.
    pub fn check(&self, method: &str, path: &str, status: u16, answer: &Value) -> Result<()> {
        let what = || format!("{method} {path}, answer {status}");
        let described = self.0["paths"][path][method]["responses"].get(status.to_string());
        let described = self.follow(described.with_context(|| format!("{} is not described", what()))?)?;
        let content = described["content"].as_object();
        let schema = content
            .and_then(|content| content.values().next())
            .and_then(|content| content.get("schema"))
            .with_context(|| format!("{} has no schema", what()))?;
        self.valid(schema, answer, "$").with_context(what)
    }

    /// What a reference leads to, or else the schema itself.
    fn follow<'a>(&'a self, schema: &'a Value) -> Result<&'a Value> {
        let Some(reference) = schema.get("$ref").and_then(Value::as_str) else {
            return Ok(schema);
        };
        let pointer = reference.trim_start_matches('#');
        self.0
            .pointer(pointer)
            .with_context(|| format!("{reference} leads nowhere"))
    }

    fn valid(&self, schema: &Value, value: &Value, at: &str) -> Result<()> {
        let schema = schema
            .as_object()
            .with_context(|| format!("the schema of {at} is no object"))?;
        for (word, rule) in schema {
            match word.as_str() {
                "$ref" => self.valid(self.follow(&Value::Object(schema.clone()))?, value, at)?,
                "type" => ensure!(of_type(rule, value), "{at}: {value} is not of type {rule}"),
                "enum" => {
                    let all = rule.as_array().context("enum is a list")?;
                    ensure!(all.contains(value), "{at}: {value} is none of {rule}");
                }
                "const" => ensure!(value == rule, "{at}: {value} is not {rule}"),
                "minimum" => {
                    let enough = value.as_f64().is_none_or(|number| Some(number) >= rule.as_f64());
                    ensure!(enough, "{at}: {value} is below {rule}");
                }
                "required" => {
                    for name in rule.as_array().context("required is a list")? {
                        let name = name.as_str().context("names are text")?;
                        ensure!(value.get(name).is_some(), "{at} has no {name}: {value}");
                    }
                }
                "properties" => self.members(schema, value, at)?,
                // With the members that are named.
                "additionalProperties" => {}
                "items" => {
                    for (index, item) in value.as_array().into_iter().flatten().enumerate() {
                        self.valid(rule, item, &format!("{at}[{index}]"))?;
                    }
                }
                "minItems" | "maxItems" => {
                    let count = value.as_array().map(|list| list.len() as u64);
                    let right = |count: u64| {
                        rule.as_u64().is_some_and(|limit| {
                            if word == "minItems" {
                                count >= limit
                            } else {
                                count <= limit
                            }
                        })
                    };
                    ensure!(count.is_none_or(right), "{at} has {count:?} items");
                }
                "allOf" => {
                    for one in rule.as_array().context("allOf is a list")? {
                        self.valid(one, value, at)?;
                    }
                }
                "oneOf" => {
                    let all = rule.as_array().context("oneOf is a list")?;
                    let right: Vec<_> = all.iter().map(|one| self.valid(one, value, at)).collect();
                    let count = right.iter().filter(|result| result.is_ok()).count();
                    let why: Vec<_> = right.iter().filter_map(|result| result.as_ref().err()).collect();
                    ensure!(count == 1, "{at}: {value} fits {count} of {}: {why:?}", all.len());
                }
                word if SILENT.contains(&word) => {}
                word => bail!("the schema of {at} says {word}, which is not understood"),
            }
        }
        Ok(())
    }

    fn members(&self, schema: &Map<String, Value>, value: &Value, at: &str) -> Result<()> {
        let named = schema["properties"].as_object().context("properties is a map")?;
        for (name, member) in value.as_object().into_iter().flatten() {
            let at = format!("{at}.{name}");
            match (named.get(name), schema.get("additionalProperties")) {
                (Some(rule), _) => self.valid(rule, member, &at)?,
                (None, None) => {}
                (None, Some(Value::Bool(false))) => bail!("{at} is not described"),
                (None, Some(rule)) => self.valid(rule, member, &at)?,
            }
        }
        Ok(())
    }
}

fn of_type(rule: &Value, value: &Value) -> bool {
    let is = |name: &Value| match name.as_str() {
        Some("object") => value.is_object(),
        Some("array") => value.is_array(),
        Some("string") => value.is_string(),
        Some("boolean") => value.is_boolean(),
        Some("integer") => value.is_i64() || value.is_u64(),
        Some("number") => value.is_number(),
        Some("null") => value.is_null(),
        _ => false,
    };
    match rule {
        Value::Array(any) => any.iter().any(is),
        one => is(one),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn refused(path: &str, answer: &Value) -> String {
        let api = OpenApi::load().unwrap();
        format!("{:#}", api.check("get", path, 200, answer).unwrap_err())
    }

    #[test]
    fn what_is_as_described_passes_and_what_is_not_does_not() {
        let api = OpenApi::load().unwrap();
        let version = json!({"version": "1", "api": 1, "protocol": 4, "more": []});
        api.check("get", "/v1/version", 200, &version).unwrap();
        assert!(refused("/v1/version", &json!({"version": "1", "api": 1})).contains("$ has no protocol"));
        let wrong = json!({"version": "1", "api": "1", "protocol": 4});
        assert!(refused("/v1/version", &wrong).contains("$.api: \"1\" is not of type \"integer\""));
        assert!(refused("/v1/nothing", &version).contains("is not described"));
        let error = json!({"message": "no"});
        api.check("post", "/v1/sync", 504, &error).unwrap();
        assert!(api.check("post", "/v1/sync", 418, &error).is_err());
    }

    #[test]
    fn an_event_is_one_of_those_described() {
        let api = OpenApi::load().unwrap();
        for event in [
            json!({"event": "phase", "phase": "kernel", "at_ms": 5}),
            json!({"event": "state", "state": "starting", "phase": "kernel", "at_ms": 5}),
            json!({"event": "docker", "ready": true}),
            json!({"event": "note", "message": "well"}),
            json!({"event": "containers", "containers": []}),
            json!({"event": "usage", "given": 1, "resident": null, "allocated": 2, "free": 3}),
            json!({"event": "failed", "reason": "r", "phase": null, "at": 1, "host_lacks": false, "console": []}),
        ] {
            api.check("get", "/v1/events", 200, &event).unwrap();
        }
        assert!(refused("/v1/events", &json!({"event": "dance", "message": "x"})).contains("fits 0 of 9"));
    }

    /// Every schema below one, itself included.
    fn all_below<'a>(schema: &'a Value, found: &mut Vec<&'a Map<String, Value>>) {
        let Some(map) = schema.as_object() else { return };
        found.push(map);
        for (word, rule) in map {
            match (word.as_str(), rule) {
                ("properties", Value::Object(named)) => named.values().for_each(|one| all_below(one, found)),
                ("allOf" | "oneOf", Value::Array(all)) => all.iter().for_each(|one| all_below(one, found)),
                ("items" | "additionalProperties", one) => all_below(one, found),
                _ => {}
            }
        }
    }

    #[test]
    fn everything_that_the_description_says_is_understood() {
        let api = OpenApi::load().unwrap();
        let mut found = Vec::new();
        for schema in api.0["components"]["schemas"].as_object().unwrap().values() {
            all_below(schema, &mut found);
        }
        assert!(found.len() > 100);
        for schema in found {
            // That nothing fits is no matter; why is.
            if let Err(error) = api.valid(&Value::Object(schema.clone()), &json!(null), "it") {
                let why = format!("{error:#}");
                assert!(
                    !why.contains("not understood") && !why.contains("leads nowhere"),
                    "{why}"
                );
            }
        }
    }
}
