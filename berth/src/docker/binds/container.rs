//! The sources a new container names: `HostConfig.Binds`, and those of `HostConfig.Mounts` that are binds.

use super::json::{Edits, Value};
use super::volume;
use crate::shares::foreign::windows_path_length;
use crate::shares::sources::{SourceError, Sources};

/// Finds them in the body of `POST /containers/create`.
pub(super) fn find(body: &[u8], sources: &Sources) -> Result<Edits, SourceError> {
    let mut edits = Edits::default();
    for host_config in Value::of(body)
        .into_iter()
        .flat_map(|body| body.members("HostConfig"))
    {
        for bind in host_config.members("Binds").into_iter().flat_map(Value::elements) {
            if let Some(changed) = bind
                .text()
                .map(|bind| map_bind(&bind, sources))
                .transpose()?
                .flatten()
            {
                edits.replace(body, bind, &changed);
            }
        }
        for mount in host_config
            .members("Mounts")
            .into_iter()
            .flat_map(Value::elements)
        {
            map_mount(body, mount, sources, &mut edits)?;
        }
    }
    Ok(edits)
}

/// A bind with its source as the guest knows it; none when that changes nothing.
fn map_bind(bind: &str, sources: &Sources) -> Result<Option<String>, SourceError> {
    let Some((source, rest)) = cut(bind) else {
        return Ok(None);
    };
    Ok(sources.find(source)?.map(|source| format!("{source}{rest}")))
}

/// Cuts `SOURCE:TARGET[:OPTIONS]` behind the source; none when there is no source.
fn cut(bind: &str) -> Option<(&str, &str)> {
    let end = windows_path_length(bind).or_else(|| bind.find(':'))?;
    // Without a colon it is a target alone.
    Some(bind.split_at(end)).filter(|(_, rest)| rest.starts_with(':'))
}

fn map_mount(body: &[u8], mount: Value<'_>, sources: &Sources, edits: &mut Edits) -> Result<(), SourceError> {
    if mount.has("Type", |kind| kind == "bind") {
        for source in mount.members("Source") {
            if let Some(changed) = source
                .text()
                .map(|text| sources.find(&text))
                .transpose()?
                .flatten()
            {
                edits.replace(body, source, &changed);
            }
        }
    }
    if mount.has("Type", |kind| kind == "volume") {
        for options in mount.members("VolumeOptions") {
            for config in options.members("DriverConfig") {
                volume::map_driver(body, config, ("Name", "Options"), sources, edits)?;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bind_is_cut_behind_its_source() {
        for (bind, expected) in [
            ("/a:/b", Some(("/a", ":/b"))),
            ("/a:/b:ro,z", Some(("/a", ":/b:ro,z"))),
            ("volume:/b", Some(("volume", ":/b"))),
            (r"C:\a b:/b:ro", Some((r"C:\a b", ":/b:ro"))),
            ("c:/a:/b", Some(("c:/a", ":/b"))),
            ("/b", None),
            ("c:/b", None),
            ("", None),
            (":/b", Some(("", ":/b"))),
        ] {
            assert_eq!(cut(bind), expected, "{bind}");
        }
    }
}
