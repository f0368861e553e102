//! Images on their way in and out, as streams that do the work while they are read: dropping one stops it.

use std::{collections::VecDeque, future::Future};

use bytes::Bytes;
use futures_util::{FutureExt, StreamExt, future::BoxFuture, stream};
use shoal_api::image::PullProgress;
use shoal_docker_api::backend::{ApiResult, ByteStream, ItemStream, Progress};
use tokio::{io::DuplexStream, sync::mpsc};
use tokio_util::io::ReaderStream;

/// Reports of progress that may wait for the client.
const REPORTS_MAX: usize = 64;
/// Bytes of an archive that may wait for the client.
const ARCHIVE_BYTES_MAX: usize = 256 << 10;

/// Runs `work` and tells what it reports, then what it ended with. An error that comes first is returned at once, so
/// that it can become the answer's status.
pub(super) async fn with_progress<F>(
    work: impl FnOnce(mpsc::Sender<PullProgress>) -> F,
) -> ApiResult<ItemStream<Progress>>
where
    F: Future<Output = ApiResult<Vec<Progress>>> + Send + 'static,
{
    with_reports(Progress::Status, work).await
}

/// The same for reports of any kind.
pub(super) async fn with_reports<R, F>(
    show: fn(R) -> Progress,
    work: impl FnOnce(mpsc::Sender<R>) -> F,
) -> ApiResult<ItemStream<Progress>>
where
    R: Send + 'static,
    F: Future<Output = ApiResult<Vec<Progress>>> + Send + 'static,
{
    let (reports, receiver) = mpsc::channel(REPORTS_MAX);
    let running = Running {
        work: Some(work(reports).boxed()),
        reports: receiver,
        show,
        last: VecDeque::new(),
    };
    let items = stream::unfold(running, |mut running| async move {
        let item = running.next().await?;
        Some((item, running))
    });
    first_checked(items).await
}

struct Running<R> {
    work: Option<BoxFuture<'static, ApiResult<Vec<Progress>>>>,
    reports: mpsc::Receiver<R>,
    show: fn(R) -> Progress,
    last: VecDeque<ApiResult<Progress>>,
}

impl<R> Running<R> {
    async fn next(&mut self) -> Option<ApiResult<Progress>> {
        if let Some(work) = &mut self.work {
            let ended = tokio::select! {
                biased;
                Some(report) = self.reports.recv() => return Some(Ok((self.show)(report))),
                ended = work => ended,
            };
            self.work = None;
            match ended {
                Ok(last) => self.last.extend(last.into_iter().map(Ok)),
                Err(error) => self.last.push_back(Err(error)),
            }
        }
        // What was reported before the end comes before the end.
        match self.reports.recv().await {
            Some(report) => Some(Ok((self.show)(report))),
            None => self.last.pop_front(),
        }
    }
}

/// An archive that is being made, for the client.
pub(super) fn pieces(
    archive: impl futures_util::Stream<Item = std::io::Result<Bytes>> + Send + 'static,
) -> ByteStream {
    Box::pin(archive.map(|piece| piece.map_err(|error| internal(&error))))
}

/// Runs `work`, which writes an archive, and passes its bytes on.
pub(super) async fn archive<F>(work: impl FnOnce(DuplexStream) -> F) -> ApiResult<ByteStream>
where
    F: Future<Output = ApiResult<()>> + Send + 'static,
{
    let (reader, writer) = tokio::io::duplex(ARCHIVE_BYTES_MAX);
    let bytes = ReaderStream::with_capacity(reader, ARCHIVE_BYTES_MAX);
    let work = Some(work(writer).boxed());
    let items = stream::unfold((work, bytes), |(mut work, mut bytes)| async move {
        loop {
            let Some(running) = &mut work else {
                // The writer is gone, so reading ends after what it left.
                let item = bytes.next().await?.map_err(|error| internal(&error));
                return Some((item, (work, bytes)));
            };
            tokio::select! {
                biased;
                ended = running => {
                    work = None;
                    if let Err(error) = ended {
                        return Some((Err(error), (None, bytes)));
                    }
                }
                Some(item) = bytes.next() => {
                    let item = item.map_err(|error| internal(&error));
                    return Some((item, (work, bytes)));
                }
            }
        }
    });
    first_checked(items).await
}

fn internal(error: &std::io::Error) -> shoal_docker_api::ApiError {
    shoal_docker_api::ApiError::internal(error.to_string())
}

async fn first_checked<T: Send + 'static>(
    items: impl stream::Stream<Item = ApiResult<T>> + Send + 'static,
) -> ApiResult<ItemStream<T>> {
    let mut items = Box::pin(items);
    match items.next().await {
        None => Ok(Box::pin(stream::empty())),
        Some(Err(error)) => Err(error),
        Some(Ok(first)) => Ok(Box::pin(stream::iter([Ok(first)]).chain(items))),
    }
}

/// An upload as bytes that can be read.
pub(super) fn reader(bytes: ByteStream) -> impl tokio::io::AsyncRead + Send + Unpin + 'static {
    let bytes = bytes.map(|item: ApiResult<Bytes>| item.map_err(std::io::Error::other));
    tokio_util::io::StreamReader::new(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use shoal_docker_api::ApiError;
    use tokio::io::AsyncWriteExt;

    #[tokio::test]
    async fn reports_come_before_the_end_and_an_early_error_at_once() {
        let report = |status: &str| PullProgress {
            status: status.to_owned(),
            ..PullProgress::default()
        };
        let stream = with_progress(|reports| async move {
            for n in 0..200 {
                reports
                    .send(report(&n.to_string()))
                    .await
                    .map_err(|_| ApiError::internal("gone"))?;
            }
            Ok(vec![Progress::Line("end".to_owned())])
        });
        let items: Vec<_> = stream.await.unwrap().collect().await;
        assert_eq!(items.len(), 201);
        assert_eq!(items[0], Ok(Progress::Status(report("0"))));
        assert_eq!(items[200], Ok(Progress::Line("end".to_owned())));
        let refused = with_progress(|_| async { Err(ApiError::not_found("no")) }).await;
        assert_eq!(
            refused.err().map(|error| error.message).as_deref(),
            Some("no")
        );
    }

    #[tokio::test]
    async fn an_archive_arrives_whole() {
        let whole = vec![7; 3 * ARCHIVE_BYTES_MAX + 5];
        let sent = whole.clone();
        let stream = archive(|mut writer| async move {
            writer
                .write_all(&sent)
                .await
                .map_err(|error| internal(&error))
        });
        let items: Vec<Bytes> = stream.await.unwrap().map(Result::unwrap).collect().await;
        assert_eq!(items.concat(), whole);
        let refused = archive(|_| async { Err(ApiError::not_found("no")) }).await;
        assert!(refused.is_err());
    }
}
