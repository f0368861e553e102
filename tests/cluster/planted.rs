//! The simulator is tried on bugs that are planted on purpose; the product has none of them.

use anyhow::Result;
use shoal_tests::lab::program;

#[test]
fn no_bug_is_planted_in_the_product() -> Result<()> {
    let mark = shoal_sim::MARK.as_bytes();
    let bytes = std::fs::read(program())?;
    // `cargo xtask sim --gate` fails unless the program that has the bugs carries the mark.
    assert!(!bytes.windows(mark.len()).any(|window| window == mark));
    Ok(())
}
