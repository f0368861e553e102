//! VXLAN network identifiers.

use crate::core::state::State;

/// First identifier given out; lower ones are left to other users of VXLAN on the hosts (as libnetwork does).
const VNI_MIN: u32 = 4096;
/// 24 bits (RFC 7348 §5).
const VNI_MAX: u32 = (1 << 24) - 1;

/// An identifier that no network has: the one after the greatest, so that a network's number is not soon used again.
pub(super) fn free_vni(state: &State) -> Option<u32> {
    let used: Vec<u32> = state.vnis().collect();
    match used.last() {
        None => Some(VNI_MIN),
        Some(last) if *last < VNI_MAX => Some((last + 1).max(VNI_MIN)),
        Some(_) => {
            let mut wanted = VNI_MIN;
            for vni in used.into_iter().skip_while(|vni| *vni < VNI_MIN) {
                if vni != wanted {
                    break;
                }
                wanted += 1;
            }
            (wanted <= VNI_MAX).then_some(wanted)
        }
    }
}
