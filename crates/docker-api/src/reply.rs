//! Answers.

use std::convert::Infallible;

use bytes::Bytes;
use futures_util::{Stream, StreamExt, stream};
use http::{HeaderValue, Response, StatusCode, header};
use http_body_util::{BodyExt, Empty, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::body::Frame;
use serde::Serialize;
use serde_json::{Value, json};

use crate::{
    backend::{ApiError, ApiResult, ItemStream, Progress},
    convert::image,
};

/// Body of an answer.
pub(crate) type Body = UnsyncBoxBody<Bytes, ApiError>;
/// An answer.
pub(crate) type Reply = Response<Body>;

const JSON: HeaderValue = HeaderValue::from_static("application/json");

fn reply(status: StatusCode, body: Body) -> Reply {
    let mut reply = Response::new(body);
    *reply.status_mut() = status;
    reply
}

fn never(error: Infallible) -> ApiError {
    match error {}
}

/// No body.
pub(crate) fn empty(status: StatusCode) -> Reply {
    reply(status, Empty::new().map_err(never).boxed_unsync())
}

/// 200 without a body.
pub(crate) fn done() -> Reply {
    empty(StatusCode::OK)
}

/// 204.
pub(crate) fn no_content() -> Reply {
    empty(StatusCode::NO_CONTENT)
}

/// Text.
pub(crate) fn text(status: StatusCode, text: &str) -> Reply {
    let body = Full::new(Bytes::copy_from_slice(text.as_bytes()));
    let mut reply = reply(status, body.map_err(never).boxed_unsync());
    reply.headers_mut().insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("text/plain; charset=utf-8"),
    );
    reply
}

/// JSON, with a line break behind it as docker writes it.
pub(crate) fn json(status: StatusCode, value: &impl Serialize) -> Reply {
    let mut bytes = serde_json::to_vec(value).expect("values and texts always serialise");
    bytes.push(b'\n');
    let body = Full::new(Bytes::from(bytes)).map_err(never);
    let mut reply = reply(status, body.boxed_unsync());
    reply.headers_mut().insert(header::CONTENT_TYPE, JSON);
    reply
}

/// 200 with JSON.
pub(crate) fn ok(value: &impl Serialize) -> Reply {
    json(StatusCode::OK, value)
}

/// 201 with JSON.
pub(crate) fn created(value: &impl Serialize) -> Reply {
    json(StatusCode::CREATED, value)
}

/// An error in docker's form.
pub(crate) fn error(error: &ApiError) -> Reply {
    if error.status == StatusCode::NOT_MODIFIED {
        return empty(error.status);
    }
    json(error.status, &json!({"message": error.message}))
}

/// 200 with plain bytes.
pub(crate) fn bytes(bytes: Vec<u8>) -> Reply {
    let once = stream::once(async move { Ok(Bytes::from(bytes)) });
    stream("application/octet-stream", once)
}

/// 200 with a body that comes piece by piece.
pub(crate) fn stream(
    content_type: &'static str,
    bytes: impl Stream<Item = ApiResult<Bytes>> + Send + 'static,
) -> Reply {
    let mut reply = reply(
        StatusCode::OK,
        StreamBody::new(bytes.map(|bytes| bytes.map(Frame::data))).boxed_unsync(),
    );
    reply
        .headers_mut()
        .insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    reply
}

/// 200 with JSON objects one after the other. An error ends the stream; the status is long gone.
pub(crate) fn json_stream(values: impl Stream<Item = ApiResult<Value>> + Send + 'static) -> Reply {
    stream(
        "application/json",
        values.map(|value| value.map(|value| line(&value))),
    )
}

fn line(value: &Value) -> Bytes {
    let mut bytes = serde_json::to_vec(value).expect("values always serialise");
    bytes.extend_from_slice(b"\r\n");
    bytes.into()
}

/// A pull, push or load. Fails with a status while nothing has been sent, and within the stream afterwards.
pub(crate) async fn progress(mut messages: ItemStream<Progress>) -> ApiResult<Reply> {
    let first = match messages.next().await {
        None => None,
        Some(first) => Some(first?),
    };
    let messages = stream::iter(first.map(Ok)).chain(messages);
    Ok(json_stream(messages.map(|message| {
        Ok(match message {
            Ok(message) => image::progress(&message),
            Err(error) => image::progress_error(&error.message),
        })
    })))
}
