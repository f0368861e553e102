//! Connections to published ports whose tasks are told the client: taken here, and passed on with a header before them.
//!
//! All other published ports are carried by the kernel alone. A task sees these connections come from the node; which task
//! each goes to is the router's choice, as for any published port.

use std::{
    io,
    net::SocketAddr,
    os::fd::{AsRawFd, OwnedFd},
    sync::Arc,
    time::Duration,
};

use nix::sys::socket::{Shutdown, setsockopt, shutdown, sockopt};
use tokio::{
    io::{AsyncWriteExt, copy_bidirectional},
    net::{TcpListener, TcpStream},
    runtime::{Builder, Runtime},
    time::{sleep, timeout},
};

use super::netns;
use crate::core::proxy_header::header;

/// Threads that carry such connections at most.
const THREADS_MAX: usize = 4;
/// How long a task may take to accept a connection.
const CONNECT_MAX: Duration = Duration::from_secs(10);
/// Pause after a connection could not be taken for want of descriptors.
const FULL_PAUSE: Duration = Duration::from_millis(50);

/// Threads in the host's namespace that carry connections; there are none before the first port needs them.
#[derive(Debug, Default)]
pub(crate) struct Proxies(Option<Runtime>);

impl Drop for Proxies {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

/// A published port whose connections are taken until this is dropped; those that were taken go on.
#[derive(Debug)]
pub(crate) struct Listening(Vec<OwnedFd>);

impl Drop for Listening {
    fn drop(&mut self) {
        for socket in &self.0 {
            // Wakes whoever accepts, who then lets go of it; it fails only where it was closed before.
            let _ = shutdown(socket.as_raw_fd(), Shutdown::Both);
        }
    }
}

impl Proxies {
    /// Takes connections from these listening sockets and passes them on to `router`.
    pub(crate) fn listen(
        &mut self,
        home: &OwnedFd,
        sockets: Vec<OwnedFd>,
        router: SocketAddr,
    ) -> io::Result<Listening> {
        let runtime = match &self.0 {
            Some(runtime) => runtime,
            None => self.0.insert(start(home)?),
        };
        let held = sockets.iter().map(OwnedFd::try_clone);
        let held = held.collect::<io::Result<Vec<_>>>()?;
        for socket in sockets {
            let listener = std::net::TcpListener::from(socket);
            listener.set_nonblocking(true)?;
            let _inside = runtime.enter();
            let listener = TcpListener::from_std(listener)?;
            runtime.spawn(accept(listener, router));
        }
        Ok(Listening(held))
    }
}

fn start(home: &OwnedFd) -> io::Result<Runtime> {
    let home = Arc::new(home.try_clone()?);
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    Builder::new_multi_thread()
        .worker_threads(threads.min(THREADS_MAX))
        .thread_name("network-proxy")
        .on_thread_start(move || {
            netns::enter(&home)
                .expect("the home namespace is open, and others of our threads are in it");
        })
        .enable_all()
        .build()
}

async fn accept(listener: TcpListener, router: SocketAddr) {
    loop {
        match listener.accept().await {
            Ok((client, from)) => {
                tokio::spawn(async move {
                    if let Err(error) = pass_on(client, from, router).await {
                        tracing::debug!(%error, %from, "a connection to a published port ended early");
                    }
                });
            }
            // It was shut down.
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => return,
            Err(error) => {
                tracing::warn!(%error, "a connection to a published port cannot be taken");
                sleep(FULL_PAUSE).await;
            }
        }
    }
}

async fn pass_on(mut client: TcpStream, from: SocketAddr, router: SocketAddr) -> io::Result<()> {
    let begin = async {
        let to = client.local_addr()?;
        let mut task = timeout(CONNECT_MAX, TcpStream::connect(router)).await??;
        for side in [&client, &task] {
            side.set_nodelay(true)?;
            // One whose host is gone would be held for ever.
            setsockopt(side, sockopt::KeepAlive, &true)?;
        }
        task.write_all(&header(from, to)).await?;
        Ok::<_, io::Error>(task)
    };
    let mut task = match begin.await {
        Ok(task) => task,
        Err(error) => {
            // What the client would have seen of the task itself.
            reset(&client);
            return Err(error);
        }
    };
    let passed = copy_bidirectional(&mut client, &mut task).await;
    if passed.is_err() {
        // Neither side takes what it has for all that there was.
        reset(&client);
        reset(&task);
    }
    passed.map(drop)
}

/// Lets the other side see a connection reset rather than an end of the answer.
fn reset(connection: &TcpStream) {
    let at_once = nix::libc::linger {
        l_onoff: 1,
        l_linger: 0,
    };
    // Without it the connection ends all the same.
    let _ = setsockopt(connection, sockopt::Linger, &at_once);
}
