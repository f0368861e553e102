//! Volumes.

use serde_json::{Value, json};
use shoal_api::container::{Volume, VolumeSpec};

use super::time::instant;
use crate::{backend::ApiResult, fields::Fields};

/// A volume of this host.
pub(crate) fn volume(volume: &Volume) -> Value {
    json!({
        "Name": volume.name,
        "Driver": volume.driver,
        "Mountpoint": volume.mountpoint,
        "CreatedAt": instant(volume.created),
        "Labels": if volume.labels.is_empty() { Value::Null } else { json!(volume.labels) },
        "Scope": "local",
        "Options": if volume.options.is_empty() { Value::Null } else { json!(volume.options) },
    })
}

/// Reads the body of `POST /volumes/create`.
pub(crate) fn read(body: &[u8]) -> ApiResult<VolumeSpec> {
    let mut f = Fields::body(body)?;
    let spec = VolumeSpec {
        name: f.text("Name")?,
        driver: f.text("Driver")?,
        labels: f.get("Labels")?,
        options: f.get("DriverOpts")?,
    };
    f.finish()?;
    Ok(spec)
}
