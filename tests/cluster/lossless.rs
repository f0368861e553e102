//! No request is lost while a service changes.

use anyhow::Result;
use shoal_tests::{lab::TestLab, lossless};

#[test]
fn updates_a_drain_and_scaling_down_lose_no_request() -> Result<()> {
    let lab = TestLab::up(3, 1)?;
    lossless::story(&lab, 2, 3)?.check()
}
