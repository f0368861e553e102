//! Unlock keys: `SWMKEY-1-<key>`, as Swarm writes them. Under it managers seal what their disks hold.

use std::fmt;

use base64::{Engine, engine::general_purpose::STANDARD_NO_PAD as BASE64};
use subtle::ConstantTimeEq;

const PREFIX: &str = "SWMKEY-1-";

/// The key that opens sealed managers.
#[derive(Clone)]
pub struct UnlockKey([u8; 32]);

impl UnlockKey {
    /// Takes up a key as the cluster's state keeps it; `None` if it is not 32 bytes long.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }

    /// Reads a key as people keep it; `None` if it is none.
    pub fn parse(text: &str) -> Option<Self> {
        let bytes = BASE64.decode(text.trim().strip_prefix(PREFIX)?).ok()?;
        Self::from_bytes(&bytes)
    }

    /// The key as it is handed to people. Anything that logs must use `Debug` instead, which hides it.
    pub fn reveal(&self) -> String {
        format!("{PREFIX}{}", BASE64.encode(self.0))
    }

    /// The key itself.
    pub fn bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

/// Compares in constant time.
impl PartialEq for UnlockKey {
    fn eq(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

impl Eq for UnlockKey {}

impl fmt::Debug for UnlockKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("UnlockKey(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_has_swarms_form_and_is_read_back() {
        let key = UnlockKey::from_bytes(&[7; 32]).unwrap();
        let text = key.reveal();
        assert_eq!(text, "SWMKEY-1-BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc");
        assert_eq!(UnlockKey::parse(&format!(" {text}\n")), Some(key.clone()));
        assert_eq!(format!("{key:?}"), "UnlockKey(…)");
        assert!(key != UnlockKey::from_bytes(&[8; 32]).unwrap());
    }

    #[test]
    fn what_is_no_key_is_refused() {
        let good = UnlockKey::from_bytes(&[7; 32]).unwrap().reveal();
        for bad in [
            "",
            "SWMKEY-1-",
            &good[9..],
            &good[..40],
            &good.replace("KEY-1", "KEY-2"),
            &"x".repeat(1 << 20),
        ] {
            assert_eq!(UnlockKey::parse(bad), None, "{bad:.60}");
        }
    }
}
