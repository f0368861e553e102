//! The keys of encrypted networks: made here, told to the cluster, replaced in time.

use std::{fs::File, io, io::Read, net::UdpSocket, sync::Arc, time::Instant};

use shoal_api::{
    NodeId,
    network::{LocalNamespaces, NetworkView},
    tunnel::TunnelKey,
};
use tokio::sync::watch;

use super::{Inputs, Kernel, Plane, Worker};
use crate::{
    core::{
        keyring::{KeyPair, Keyring},
        naming,
        observed::{ObservedSpace, OwnKeys},
        rtnl_wire::{self, LinkPlaces},
        state::{Link, LinkKind, Space},
        tunnel::{PrivateKey, Tunnel, TunnelStep},
        wireguard_wire,
    },
    io::{
        error::PlaneError,
        netns, observe,
        socket::{Kind, Socket},
    },
};

/// Port of the tunnel, as is customary with WireGuard; if a program of the host has it, one of the next.
const PORT: u16 = 51_820;
const PORTS_MAX: u16 = 100;

/// What the cluster is to know of this node's tunnel.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct KeyState {
    /// Its keys, the one in use first; none where the kernel has no WireGuard.
    pub told: Vec<TunnelKey>,
    /// When [`Plane::turn_keys`] has something to do; `None` while there is nothing.
    pub due: Option<Instant>,
}

impl Plane {
    /// The keys that the cluster is to be told of, to be watched.
    pub fn keys(&self) -> watch::Receiver<KeyState> {
        self.keys.clone()
    }

    /// Takes the next step in replacing this node's key, if it is due; everything else stays as with the last call of
    /// [`Self::converge`], whose arguments these are.
    pub async fn turn_keys(
        &self,
        view: &Arc<NetworkView>,
        me: &NodeId,
        local: &LocalNamespaces,
    ) -> Result<(), Vec<PlaneError>> {
        self.ask((view, me, local), Worker::turn_keys).await
    }
}

impl Worker {
    /// Takes up the key of an earlier daemon, or makes the first one.
    pub(super) fn begin_keys(&mut self) {
        let Some(family) = self.families.wireguard else {
            return;
        };
        let (times, now) = (self.config.key_times, self.started.elapsed());
        let ring = match self.found_key() {
            Ok(Some((pair, port))) => Ok(Keyring::found(pair, port, times, now)),
            Ok(None) | Err(_) => self
                .make_key(family)
                .map(|pair| Keyring::new(pair, free_port(), times, now)),
        };
        match ring {
            Ok(ring) => self.keyring = Some(ring),
            Err(error) => tracing::warn!(%error, "no key for encrypted networks can be made"),
        }
        self.tell_keys();
    }

    fn found_key(&self) -> io::Result<Option<(KeyPair, u16)>> {
        let directory = self.config.run_dir.join("netns");
        let mut kernel = Kernel::new(&self.home, directory, Default::default()).with(self.families);
        let name = naming::tunnel_link(&self.config.prefix);
        let there = observe::link(kernel.handle(&Space::Host)?, &name)?;
        let (Some(_), Some((socket, family))) = (there, kernel.wireguard(&Space::Host)?) else {
            return Ok(None);
        };
        let reading = observe::tunnel(socket, family, &name)?;
        let public = reading.public();
        Ok(reading.tunnel().zip(public).map(|(tunnel, public)| {
            let private = tunnel.private;
            (KeyPair { private, public }, tunnel.port)
        }))
    }

    /// Makes a key in a namespace that is thrown away: the kernel computes the public half.
    fn make_key(&self, family: u16) -> io::Result<KeyPair> {
        const NAME: &str = "key";
        netns::visit_fresh(&self.home, || {
            let link = Link {
                kind: LinkKind::Wireguard,
                mac: None,
                mtu: None,
                master: None,
                isolated: false,
                hairpin: false,
            };
            let made = rtnl_wire::create_link(NAME, &link, LinkPlaces::default());
            Socket::open(Kind::Route)?.request(made)?;
            let mut random = [0; 32];
            File::open("/dev/urandom")?.read_exact(&mut random)?;
            let private = PrivateKey::of(random);
            let step = TunnelStep {
                private: Some(private.clone()),
                ..TunnelStep::default()
            };
            let mut socket = Socket::open(Kind::Generic)?;
            for message in wireguard_wire::set(family, NAME, &step) {
                socket.request(message)?;
            }
            let reading = observe::tunnel(&mut socket, family, NAME)?;
            let public = reading.public().ok_or(io::ErrorKind::UnexpectedEof)?;
            Ok(KeyPair { private, public })
        })?
    }

    fn turn_keys(&mut self, inputs: Inputs<'_>) -> Result<(), Vec<PlaneError>> {
        let now = self.started.elapsed();
        let (Some(ring), Some(family)) = (&self.keyring, self.families.wireguard) else {
            return Ok(());
        };
        let fresh = ring.needs_key(now).then(|| self.make_key(family));
        let fresh = fresh.transpose();
        let Some(ring) = &mut self.keyring else {
            return Ok(());
        };
        let outcome = match fresh {
            Ok(fresh) => Ok(ring.step(fresh, now)),
            Err(source) => {
                ring.postpone(now);
                let step = "make a key for encrypted networks".to_owned();
                Err(vec![PlaneError::Step { step, source }])
            }
        };
        self.tell_keys();
        match outcome {
            Ok(true) if self.asked.is_some() => self.bring_about(inputs),
            // Nothing stands yet, or not as it should: the next call makes it, with this key.
            Ok(_) => Ok(()),
            Err(errors) => Err(errors),
        }
    }

    /// Takes note of what a view says of this node's keys.
    pub(super) fn note_keys(&mut self, view: &NetworkView, me: &NodeId) {
        let now = self.started.elapsed();
        if let Some(ring) = &mut self.keyring {
            let known = view.peers.get(me).map(|peer| &peer.tunnel_keys[..]);
            let needed = view.networks.values().any(|slice| slice.encrypted);
            ring.note(known.filter(|_| needed), now);
        }
        self.tell_keys();
    }

    fn tell_keys(&self) {
        let state = match &self.keyring {
            Some(ring) => KeyState {
                told: ring.told(),
                due: ring.due().map(|due| self.started + due),
            },
            None => KeyState::default(),
        };
        self.tell_keys.send_if_modified(|told| {
            let differs = *told != state;
            *told = state;
            differs
        });
    }

    pub(super) fn own_keys(&self) -> Option<OwnKeys> {
        let ring = self.keyring.as_ref()?;
        Some(OwnKeys {
            current: ring.current().clone(),
            other: ring.other(),
            port: ring.port(),
        })
    }

    /// Encrypted networks in which this node has tasks and which it cannot carry; they are not carried in the open either.
    pub(super) fn not_to_be_encrypted(&self, view: &NetworkView, me: &NodeId) -> Vec<PlaneError> {
        if self.keyring.is_some() {
            return Vec::new();
        }
        let encrypted = view.networks.values().filter(|slice| slice.encrypted);
        let own = encrypted.filter(|slice| slice.endpoints.values().any(|one| one.node == *me));
        own.map(|slice| PlaneError::NoEncryption {
            network: slice.name.clone(),
        })
        .collect()
    }

    /// Reads the tunnel's device back, if it is among what was found.
    pub(super) fn read_tunnel(
        &self,
        kernel: &mut Kernel<'_>,
        found: &ObservedSpace,
    ) -> io::Result<Option<Tunnel>> {
        let name = naming::tunnel_link(&self.config.prefix);
        if !found.links.contains_key(&name) {
            return Ok(None);
        }
        let Some((socket, family)) = kernel.wireguard(&Space::Host)? else {
            return Ok(None);
        };
        Ok(observe::tunnel(socket, family, &name)?.tunnel())
    }
}

/// A port of this host that no program has.
fn free_port() -> u16 {
    let mut ports = PORT..PORT + PORTS_MAX;
    let free = ports.find(|port| UdpSocket::bind(("::", *port)).is_ok());
    free.unwrap_or(PORT)
}
