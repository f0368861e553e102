//! Writes of users, forwarded by a manager that does not lead.

use shoal_api::{
    object::{Object, ObjectKey},
    wire::{
        self, DecodeError, ListPassingRequest, ListPassingResponse, WriteRequest, WriteResponse,
        control_server::Control,
        spec::Kind,
        write_request::{Create, Op, Remove, RotateRoot, RotateTokens, Update},
    },
};
use tonic::{Code, Request, Response, Status, async_trait};

use super::{authorize::calling_manager, client};
use crate::{
    core::{
        control::{Intent, Spec},
        validate::{Refusal, RefusalKind},
    },
    io::manager::{Desk, WishName, WriteError},
};

/// The `Control` service.
pub(crate) struct ControlService {
    pub(crate) desk: Desk,
}

#[async_trait]
impl Control for ControlService {
    async fn write(
        &self,
        request: Request<WriteRequest>,
    ) -> Result<Response<WriteResponse>, Status> {
        calling_manager(&request)?;
        self.desk.require_leader().await?;
        let request = request.into_inner();
        let name = wish_name(&request)?;
        let intent = Intent::try_from(request)
            .map_err(|error| Status::invalid_argument(error.to_string()))?;
        match self.desk.write_as_leader(intent, name).await {
            Ok(object) => Ok(Response::new(WriteResponse {
                object: object.as_ref().map(Into::into),
            })),
            Err(WriteError::Refused(refusal)) => Err(to_status(&refusal)),
            Err(WriteError::NoLeader) => {
                Err(client::not_leader(self.desk.leader_address().as_deref()))
            }
            Err(WriteError::Lost) => Err(client::lost()),
            Err(error @ WriteError::Forward(_)) => Err(Status::unknown(error.to_string())),
        }
    }

    async fn list_passing(
        &self,
        request: Request<ListPassingRequest>,
    ) -> Result<Response<ListPassingResponse>, Status> {
        calling_manager(&request)?;
        self.desk.require_leader().await?;
        let after = request.into_inner().after;
        let (version, statuses) = self.desk.passing.read(after).await;
        let tasks = statuses.iter();
        Ok(Response::new(ListPassingResponse {
            tasks: tasks.map(|(id, s)| (id.to_string(), s.into())).collect(),
            version,
        }))
    }
}

/// The name of a wish, if it has one.
fn wish_name(request: &WriteRequest) -> Result<Option<WishName>, Status> {
    if request.wish.is_empty() {
        return Ok(None);
    }
    let id = <[u8; 16]>::try_from(request.wish.as_slice()).map_err(|_| {
        let length = request.wish.len();
        Status::invalid_argument(format!("wish: {length} bytes, 16 expected"))
    })?;
    Ok(Some(WishName {
        id: u128::from_be_bytes(id),
        since: request.since,
    }))
}

/// A refusal as gRPC carries it.
pub fn to_status(refusal: &Refusal) -> Status {
    let code = match refusal.kind {
        RefusalKind::InvalidArgument => Code::InvalidArgument,
        RefusalKind::NotFound => Code::NotFound,
        RefusalKind::PermissionDenied => Code::PermissionDenied,
        RefusalKind::AlreadyExists => Code::AlreadyExists,
        RefusalKind::FailedPrecondition => Code::FailedPrecondition,
        RefusalKind::Unimplemented => Code::Unimplemented,
        RefusalKind::Unknown => Code::Unknown,
    };
    Status::new(code, refusal.text.clone())
}

/// Reads what [`to_status`] wrote; `None` for codes that no refusal has.
pub fn from_status(status: &Status) -> Option<Refusal> {
    let kind = match status.code() {
        Code::InvalidArgument => RefusalKind::InvalidArgument,
        Code::NotFound => RefusalKind::NotFound,
        Code::AlreadyExists => RefusalKind::AlreadyExists,
        Code::FailedPrecondition => RefusalKind::FailedPrecondition,
        Code::Unimplemented => RefusalKind::Unimplemented,
        Code::Unknown => RefusalKind::Unknown,
        _ => return None,
    };
    Some(Refusal {
        kind,
        text: status.message().to_owned(),
    })
}

impl From<&Intent> for WriteRequest {
    fn from(intent: &Intent) -> Self {
        let wire_key = |key: &ObjectKey| Some(key.into());
        let op = match intent {
            Intent::Create(spec) => Op::Create(Create {
                spec: Some(spec.into()),
            }),
            Intent::Update { key, version, spec } => Op::Update(Update {
                key: wire_key(key),
                version: *version,
                spec: Some(spec.into()),
                rollback: false,
                revision: None,
            }),
            Intent::Rollback { key, version, to } => Op::Update(Update {
                key: wire_key(key),
                version: *version,
                spec: None,
                rollback: true,
                revision: *to,
            }),
            Intent::Remove { key, force } => Op::Remove(Remove {
                key: wire_key(key),
                force: *force,
            }),
            Intent::RotateTokens {
                worker,
                manager,
                unlock_key,
            } => Op::RotateTokens(RotateTokens {
                worker: *worker,
                manager: *manager,
                unlock_key: *unlock_key,
            }),
            Intent::RotateRoot {
                version,
                spec,
                rotation,
            } => Op::RotateRoot(RotateRoot {
                version: *version,
                spec: Some(spec.as_ref().into()),
                rotation: Some(rotation.into()),
            }),
        };
        Self {
            op: Some(op),
            ..Self::default()
        }
    }
}

impl TryFrom<WriteRequest> for Intent {
    type Error = DecodeError;

    fn try_from(request: WriteRequest) -> Result<Self, DecodeError> {
        let missing = |field| missing("WriteRequest", field);
        let read_key =
            |key: Option<wire::ObjectKey>| ObjectKey::try_from(key.ok_or_else(|| missing("key"))?);
        let read_spec =
            |spec: Option<wire::Spec>| Spec::try_from(spec.ok_or_else(|| missing("spec"))?);
        Ok(match request.op.ok_or_else(|| missing("op"))? {
            Op::Create(create) => Self::Create(read_spec(create.spec)?),
            Op::Update(Update {
                key,
                version,
                rollback: true,
                revision,
                ..
            }) => Self::Rollback {
                key: read_key(key)?,
                version,
                to: revision,
            },
            Op::Update(Update {
                key,
                version,
                spec,
                rollback: false,
                ..
            }) => Self::Update {
                key: read_key(key)?,
                version,
                spec: read_spec(spec)?,
            },
            Op::Remove(remove) => Self::Remove {
                key: read_key(remove.key)?,
                force: remove.force,
            },
            Op::RotateTokens(RotateTokens {
                worker,
                manager,
                unlock_key,
            }) => Self::RotateTokens {
                worker,
                manager,
                unlock_key,
            },
            Op::RotateRoot(RotateRoot {
                version,
                spec,
                rotation,
            }) => Self::RotateRoot {
                version,
                spec: Box::new(spec.ok_or_else(|| missing("spec"))?.try_into()?),
                rotation: rotation.ok_or_else(|| missing("rotation"))?.try_into()?,
            },
        })
    }
}

impl From<&Spec> for wire::Spec {
    fn from(spec: &Spec) -> Self {
        let kind = match spec {
            Spec::Node(spec) => Kind::Node(spec.into()),
            Spec::Service(spec) => Kind::Service(Box::new(spec.as_ref().into())),
            Spec::Network(spec) => Kind::Network(spec.into()),
            Spec::Secret(spec) => Kind::Secret(spec.into()),
            Spec::Config(spec) => Kind::Config(spec.into()),
            Spec::Cluster(spec) => Kind::Cluster(Box::new(spec.into())),
        };
        Self { kind: Some(kind) }
    }
}

impl TryFrom<wire::Spec> for Spec {
    type Error = DecodeError;

    fn try_from(spec: wire::Spec) -> Result<Self, DecodeError> {
        Ok(match spec.kind.ok_or_else(|| missing("Spec", "kind"))? {
            Kind::Node(spec) => Self::Node(spec.try_into()?),
            Kind::Service(spec) => Self::Service(Box::new((*spec).try_into()?)),
            Kind::Network(spec) => Self::Network(spec.try_into()?),
            Kind::Secret(spec) => Self::Secret(spec.try_into()?),
            Kind::Config(spec) => Self::Config(spec.try_into()?),
            Kind::Cluster(spec) => Self::Cluster((*spec).try_into()?),
        })
    }
}

fn missing(message: &str, field: &str) -> DecodeError {
    DecodeError {
        field: format!("{message}.{field}"),
        problem: "required field is missing".to_owned(),
    }
}

/// The object that a write resulted in; `None` after a removal.
pub(crate) fn written(response: WriteResponse) -> Result<Option<Object>, DecodeError> {
    response.object.map(Object::try_from).transpose()
}
