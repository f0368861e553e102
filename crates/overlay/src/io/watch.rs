//! Waits for the kernel to say that somebody else changed what is ours.
//!
//! One thread listens in all namespaces of a plane. Whoever changes them holds the watch meanwhile, so that the notices
//! of its own steps are taken away before the thread sees them.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    os::fd::AsFd,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use nix::{
    errno::Errno,
    sys::{
        epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout},
        eventfd::{EfdFlags, EventFd},
    },
};
use tokio::sync::Notify;

use super::socket::{Kind, Listener};
use crate::core::{
    notice::{self, Scope},
    state::Space,
};

/// Events taken at once.
const EVENTS_MAX: usize = 64;
/// Token of the request to end.
const END: u64 = 0;

/// A thread that listens.
#[derive(Debug)]
pub(crate) struct Watch {
    shared: Arc<Shared>,
}

/// What the thread shares with whoever changes the namespaces.
#[derive(Debug)]
pub(crate) struct Shared {
    epoll: Epoll,
    end: EventFd,
    state: Mutex<Watched>,
    alarm: Arc<Notify>,
}

/// The namespaces in which is listened, and those in which somebody was at work.
#[derive(Debug, Default)]
struct Watched {
    spaces: BTreeMap<Space, Post>,
    disturbed: BTreeSet<Space>,
    last_token: u64,
}

#[derive(Debug)]
struct Post {
    inode: u64,
    token: u64,
    route: Listener,
    netfilter: Listener,
    ours: Scope,
}

impl Post {
    /// Takes all notices; whether one of them concerns us. `excused` says that what the kernel did by itself was
    /// caused by ourselves.
    fn drain(&mut self, excused: bool) -> bool {
        let (ours, mut concerns) = (&self.ours, false);
        let lost = self.route.drain(|message| {
            let by_us = excused && notice::may_follow_from_ours(message);
            concerns |= !by_us && notice::route_concerns(message, ours);
        });
        concerns |= lost;
        let lost = self.netfilter.drain(|message| {
            concerns |= notice::netfilter_concerns(message, ours);
        });
        concerns || lost
    }
}

impl Watch {
    /// Starts the thread. `alarm` is told whenever somebody else was at work.
    pub(crate) fn start(name: &str, alarm: Arc<Notify>) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            epoll: Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?,
            end: EventFd::from_flags(EfdFlags::EFD_CLOEXEC)?,
            state: Mutex::default(),
            alarm,
        });
        let readable = EpollEvent::new(EpollFlags::EPOLLIN, END);
        shared.epoll.add(&shared.end, readable)?;
        let listening = Arc::clone(&shared);
        std::thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || listening.listen())?;
        Ok(Self { shared })
    }

    /// What the thread shares with whoever changes the namespaces.
    pub(crate) fn shared(&self) -> Arc<Shared> {
        Arc::clone(&self.shared)
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        // The counter of an eventfd that nobody reads cannot overflow by one.
        let _ = self.shared.end.write(1);
    }
}

impl Shared {
    /// Holds the watch: until the result is dropped, nobody else takes notices.
    pub(crate) fn hold(&self) -> Held<'_> {
        Held {
            shared: self,
            state: self.lock(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Watched> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn listen(&self) {
        let mut events = [EpollEvent::empty(); EVENTS_MAX];
        loop {
            let count = match self.epoll.wait(&mut events, EpollTimeout::NONE) {
                Ok(count) => count,
                Err(Errno::EINTR) => continue,
                Err(errno) => {
                    tracing::error!(%errno, "no longer listening to the kernel");
                    return;
                }
            };
            let tokens: BTreeSet<u64> = events[..count].iter().map(EpollEvent::data).collect();
            if tokens.contains(&END) {
                return;
            }
            let mut state = self.lock();
            let mut disturbed = Vec::new();
            for (space, post) in &mut state.spaces {
                if tokens.contains(&post.token) && post.drain(false) {
                    disturbed.push(space.clone());
                }
            }
            if !disturbed.is_empty() {
                state.disturbed.extend(disturbed);
                self.alarm.notify_one();
            }
        }
    }
}

/// The watch in the hands of somebody who changes things.
pub(crate) struct Held<'a> {
    shared: &'a Shared,
    state: MutexGuard<'a, Watched>,
}

impl Held<'_> {
    /// The namespaces in which somebody was at work since this was asked last.
    pub(crate) fn take_disturbed(&mut self) -> BTreeSet<Space> {
        std::mem::take(&mut self.state.disturbed)
    }

    /// Whether somebody was at work in a namespace since [`Self::take_disturbed`].
    pub(crate) fn is_disturbed(&self, space: &Space) -> bool {
        self.state.disturbed.contains(space)
    }

    /// Says that somebody was at work in these namespaces, who was seen otherwise than by a notice.
    pub(crate) fn disturb(&mut self, spaces: BTreeSet<Space>) {
        self.state.disturbed.extend(spaces);
        self.shared.alarm.notify_one();
    }

    /// Changes what is ours in a namespace, without saying it all anew.
    pub(crate) fn amend(&mut self, space: &Space, change: impl FnOnce(&mut Scope)) {
        if let Some(post) = self.state.spaces.get_mut(space) {
            change(&mut post.ours);
        }
    }

    /// Stops listening in namespaces that are not wanted.
    pub(crate) fn keep_only(&mut self, wanted: impl Fn(&Space) -> bool) {
        self.state.spaces.retain(|space, _| wanted(space));
    }

    /// Whether there are ears in this namespace.
    pub(crate) fn is_listening(&self, space: &Space, inode: u64) -> bool {
        let post = self.state.spaces.get(space);
        post.is_some_and(|post| post.inode == inode)
    }

    /// Starts to listen in the namespace of the calling thread, which is `space`.
    pub(crate) fn listen_here(&mut self, space: &Space, inode: u64) -> io::Result<()> {
        let route = Listener::open(Kind::Route, &notice::ROUTE_GROUPS)?;
        let netfilter = Listener::open(Kind::Netfilter, &notice::NETFILTER_GROUPS)?;
        self.state.last_token += 1;
        let token = self.state.last_token;
        for listener in [&route, &netfilter] {
            let readable = EpollEvent::new(EpollFlags::EPOLLIN, token);
            self.shared.epoll.add(listener.as_fd(), readable)?;
        }
        let post = Post {
            inode,
            token,
            route,
            netfilter,
            ours: Scope::default(),
        };
        self.state.spaces.insert(space.clone(), post);
        Ok(())
    }

    /// Says what is ours from now on, when everything was looked at and brought about, and forgets the notices of our own
    /// steps. What the kernel did meanwhile may have followed from them or from steps of others, of which it does not say
    /// whose they are: then everything is looked at once more, which ends when nothing is left to do.
    pub(crate) fn settle(&mut self, ours: BTreeMap<Space, Scope>) {
        self.take_notices(ours, false);
    }

    /// Forgets the notices of a few steps, and what followed from them: whoever takes a short way must not look at
    /// everything for it.
    pub(crate) fn settle_steps(&mut self) {
        self.take_notices(BTreeMap::new(), true);
    }

    fn take_notices(&mut self, mut ours: BTreeMap<Space, Scope>, excused: bool) {
        let mut disturbed = Vec::new();
        for (space, post) in &mut self.state.spaces {
            if let Some(ours) = ours.remove(space) {
                post.ours = ours;
            }
            if post.drain(excused) {
                disturbed.push(space.clone());
            }
        }
        if !disturbed.is_empty() {
            self.state.disturbed.extend(disturbed);
            self.shared.alarm.notify_one();
        }
    }
}
