//! Errors of the engine as the API's statuses and texts.

use shoal_docker_api::ApiError;
use shoal_engine::io::{
    EngineError, EngineErrorKind,
    images::{ImageError, ImageErrorKind},
};

use crate::{bridges::BridgesError, network::chain};

pub(super) fn engine(error: EngineError) -> ApiError {
    match error {
        EngineError::Image(error) => image(error),
        EngineError::NotModified(_) => ApiError::not_modified(),
        error => {
            let text = error.report();
            match error.kind() {
                EngineErrorKind::NotFound => ApiError::not_found(text),
                EngineErrorKind::Conflict => ApiError::conflict(text),
                EngineErrorKind::Invalid => ApiError::invalid(text),
                EngineErrorKind::NotModified => ApiError::not_modified(),
                EngineErrorKind::Internal => ApiError::internal(text),
            }
        }
    }
}

/// Why a container cannot be told a signal.
pub(super) fn kill(name: &str, error: EngineError) -> ApiError {
    let prefixed = |text: String| format!("cannot kill container: {name}: {text}");
    match error {
        EngineError::NotRunning(id) => {
            ApiError::conflict(prefixed(format!("container {id} is not running")))
        }
        error if error.kind() == EngineErrorKind::NotFound => {
            ApiError::not_found(prefixed(error.report()))
        }
        error => engine(error),
    }
}

/// Why a container cannot have another name: what is wrong with the new one is said so.
pub(super) fn rename(error: EngineError) -> ApiError {
    // Docker shows the name as it keeps it, with a slash.
    let slashed = match error {
        EngineError::InvalidName(name) => EngineError::InvalidName(format!("/{name}")),
        other => other,
    };
    let error = engine(slashed);
    let text = &error.message;
    if text.starts_with("Conflict. ") || text.starts_with("Invalid ") {
        return ApiError {
            message: format!("Error when allocating new name: {text}"),
            ..error
        };
    }
    error
}

pub(super) fn image(error: ImageError) -> ApiError {
    let text = error.report();
    match error.kind() {
        ImageErrorKind::NotFound => ApiError::not_found(text),
        // Docker cannot tell a repository that does not exist from one that is not shown to strangers.
        ImageErrorKind::Denied if text.starts_with("pull access denied") => {
            ApiError::not_found(text)
        }
        ImageErrorKind::Denied => ApiError::unauthorized(text),
        ImageErrorKind::Conflict => ApiError::conflict(text),
        ImageErrorKind::Invalid => ApiError::invalid(text),
        ImageErrorKind::Registry | ImageErrorKind::Io => ApiError::internal(text),
    }
}

pub(super) fn network(error: BridgesError) -> ApiError {
    let text = chain(&error);
    match error {
        BridgesError::NotFound(_) => ApiError::not_found(text),
        BridgesError::NameTaken(_) => ApiError::conflict(text),
        BridgesError::Predefined(_)
        | BridgesError::Active { .. }
        | BridgesError::Connected { .. }
        | BridgesError::Overlap
        | BridgesError::AddressTaken
        | BridgesError::Forbidden(_) => ApiError::forbidden(text),
        BridgesError::Invalid(_) => ApiError::invalid(text),
        BridgesError::Unsupported(feature) => ApiError::not_implemented(&feature),
        BridgesError::NotConnected { .. }
        | BridgesError::NoSubnet
        | BridgesError::Port { .. }
        | BridgesError::Kernel(_)
        | BridgesError::Io { .. } => ApiError::internal(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use shoal_engine::io::network::NetworkError;

    #[test]
    fn statuses_are_dockers() {
        let check = |error: EngineError, status: u16, text: &str| {
            let api = engine(error);
            assert_eq!((api.status.as_u16(), api.message.as_str()), (status, text));
        };
        check(
            EngineError::NoSuchContainer("c".to_owned()),
            404,
            "No such container: c",
        );
        check(
            EngineError::NoSuchImage("x:latest".to_owned()),
            404,
            "No such image: x:latest",
        );
        check(
            EngineError::NotRunning("c".to_owned()),
            409,
            "container c is not running",
        );
        check(EngineError::NotModified("c".to_owned()), 304, "");
        check(EngineError::Invalid("bad".to_owned()), 400, "bad");
        let port = BridgesError::Port {
            container: "web".to_owned(),
            endpoint: "ab".to_owned(),
            reason: "Bind for 0.0.0.0:80 failed: port is already allocated".to_owned(),
        };
        check(
            EngineError::Network(NetworkError::from(port)),
            500,
            "failed to set up container networking: driver failed programming external connectivity on endpoint \
             web (ab): Bind for 0.0.0.0:80 failed: port is already allocated",
        );
    }

    #[test]
    fn a_pull_that_is_refused_is_not_found_and_a_wrong_password_unauthorized() {
        let status = |text: &str| image(ImageError::Denied(text.to_owned())).status.as_u16();
        assert_eq!(
            status("pull access denied for x, repository does not exist"),
            404
        );
        assert_eq!(
            status("Get \"https://r/v2/\": unauthorized: authentication required"),
            401
        );
    }
}
