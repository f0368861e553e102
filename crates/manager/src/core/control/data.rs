//! Secrets and configs: create, relabel, remove. Their data never changes.

use shoal_api::{
    ConfigId, SecretId,
    object::{Config, Object, ObjectKey, Secret},
    spec::{ConfigSpec, SecretSpec},
};

use super::{Outcome, create, remove, same_version, unborn, update};
use crate::core::{
    reconcile::Ctx,
    state::{Kind, LogIndex, State, in_use},
    validate::{self, Refusal},
};

const ONLY_LABELS: &str = "only updates to Labels are allowed";

/// Makes a secret.
///
/// # Errors
/// Its name or size is wrong, or the name is taken.
pub fn create_secret(state: &State, cx: &mut Ctx<'_>, spec: SecretSpec) -> Outcome {
    validate::secret(&spec)?;
    if state.named(Kind::Secret, &spec.annotations.name).is_some() {
        return Err(Refusal::name_taken(Kind::Secret, &spec.annotations.name));
    }
    let secret = Secret {
        id: cx.ids.next(),
        meta: unborn(),
        spec,
    };
    Ok(create(cx, Object::Secret(secret)))
}

/// Changes a secret's labels. Empty data stands for the data that is there.
///
/// # Errors
/// Anything else is to change; `update out of sequence`.
pub fn update_secret(
    state: &State,
    cx: &mut Ctx<'_>,
    id: &SecretId,
    version: LogIndex,
    spec: SecretSpec,
) -> Outcome {
    let old = state
        .secret(id)
        .ok_or_else(|| Refusal::not_found("secret", id))?;
    let same_data = spec.data.is_empty() || spec.data == old.spec.data;
    if spec.annotations.name != old.spec.annotations.name || !same_data {
        return Err(Refusal::invalid(ONLY_LABELS));
    }
    same_version(&old.meta, version)?;
    let mut secret = old.as_ref().clone();
    secret.spec.annotations = spec.annotations;
    Ok(update(cx, Object::Secret(secret)))
}

/// Removes a secret.
///
/// # Errors
/// It does not exist, or services use it, which are named.
pub fn remove_secret(state: &State, cx: &mut Ctx<'_>, id: &SecretId) -> Outcome {
    let secret = state
        .secret(id)
        .ok_or_else(|| Refusal::not_found("secret", id))?;
    unused(
        "secret",
        &secret.spec.annotations.name,
        &state.secret_users(id),
    )?;
    Ok(remove(
        cx,
        ObjectKey::Secret(id.clone()),
        secret.meta.version,
    ))
}

/// Makes a config.
///
/// # Errors
/// Its name or size is wrong, or the name is taken.
pub fn create_config(state: &State, cx: &mut Ctx<'_>, spec: ConfigSpec) -> Outcome {
    validate::config(&spec)?;
    if state.named(Kind::Config, &spec.annotations.name).is_some() {
        return Err(Refusal::name_taken(Kind::Config, &spec.annotations.name));
    }
    let config = Config {
        id: cx.ids.next(),
        meta: unborn(),
        spec,
    };
    Ok(create(cx, Object::Config(config)))
}

/// Changes a config's labels. Empty data stands for the data that is there.
///
/// # Errors
/// Anything else is to change; `update out of sequence`.
pub fn update_config(
    state: &State,
    cx: &mut Ctx<'_>,
    id: &ConfigId,
    version: LogIndex,
    spec: ConfigSpec,
) -> Outcome {
    let old = state
        .config(id)
        .ok_or_else(|| Refusal::not_found("config", id))?;
    let same_data = spec.data.is_empty() || spec.data == old.spec.data;
    if spec.annotations.name != old.spec.annotations.name || !same_data {
        return Err(Refusal::invalid(ONLY_LABELS));
    }
    same_version(&old.meta, version)?;
    let mut config = old.as_ref().clone();
    config.spec.annotations = spec.annotations;
    Ok(update(cx, Object::Config(config)))
}

/// Removes a config.
///
/// # Errors
/// It does not exist, or services use it, which are named.
pub fn remove_config(state: &State, cx: &mut Ctx<'_>, id: &ConfigId) -> Outcome {
    let config = state
        .config(id)
        .ok_or_else(|| Refusal::not_found("config", id))?;
    unused(
        "config",
        &config.spec.annotations.name,
        &state.config_users(id),
    )?;
    Ok(remove(
        cx,
        ObjectKey::Config(id.clone()),
        config.meta.version,
    ))
}

fn unused(kind: &str, name: &str, users: &[String]) -> Result<(), Refusal> {
    if users.is_empty() {
        Ok(())
    } else {
        Err(Refusal::invalid(in_use(kind, name, users)))
    }
}
