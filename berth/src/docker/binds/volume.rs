//! Volumes that are a bind mount in disguise: the `local` driver with `o=bind`, whose `device` is the source.

use super::json::{Edits, Value};
use crate::shares::sources::{SourceError, Sources};

/// Finds the source in the body of `POST /volumes/create`.
pub(super) fn find(body: &[u8], sources: &Sources) -> Result<Edits, SourceError> {
    let mut edits = Edits::default();
    if let Some(volume) = Value::of(body) {
        map_driver(body, volume, ("Driver", "DriverOpts"), sources, &mut edits)?;
    }
    Ok(edits)
}

/// Maps the device of `config`, whose members with the driver's name and its options are called `names`.
pub(super) fn map_driver(
    body: &[u8],
    config: Value<'_>,
    names: (&str, &str),
    sources: &Sources,
    edits: &mut Edits,
) -> Result<(), SourceError> {
    // Another driver's options are its own; none is the local one.
    if config.has(names.0, |driver| !matches!(driver, "" | "local")) {
        return Ok(());
    }
    for options in config.members(names.1) {
        let binds = |flags: &str| flags.split(',').any(|flag| matches!(flag, "bind" | "rbind"));
        if !options.has("o", binds) {
            continue;
        }
        for device in options.members("device") {
            if let Some(changed) = device
                .text()
                .map(|text| sources.find(&text))
                .transpose()?
                .flatten()
            {
                edits.replace(body, device, &changed);
            }
        }
    }
    Ok(())
}
