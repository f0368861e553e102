//! What the kernel has and lacks: the plane says so and takes the next best way.
#![allow(clippy::print_stderr, reason = "tests say why they were skipped")]
#![allow(unreachable_pub, reason = "a test is a crate without a surface")]

mod lab;

use lab::{Traffic, lab, view};

#[tokio::test]
async fn ipvs_is_chosen_where_it_is_and_gives_way_to_nftables_where_it_is_not() {
    let mut lab = match lab().await {
        Ok(lab) => lab,
        Err(missing) => return eprintln!("skipped, because {missing}"),
    };
    let chosen = lab.lb_driver(0);
    let features = lab.open_with_ipvs();
    for always in ["VXLAN", "nftables"] {
        assert!(features[always], "{features:?}");
    }
    let expected = if features["IPVS"] { "IPVS" } else { "nftables" };
    assert_eq!(lab.lb_driver(0), expected, "{features:?}");
    let told = std::env::var("SHOAL_LB_DRIVER");
    let by_itself = match told.as_deref() {
        Ok("nft") => "nftables",
        _ => expected,
    };
    assert_eq!(chosen, by_itself, "told {told:?}: {features:?}");
    for (task, host) in [("t1", 0), ("t2", 1)] {
        lab.container(task, host);
    }
    let view = view();
    lab.converge(&view).await;
    lab.serve("t2", "0.0.0.0:80");
    let answers = lab.count("t1", "10.0.1.2:80", 4);
    assert!(answers.contains_key("t2 sees 10.0.1.11"), "{answers:?}");
}
