//! Names for containers that were given none, and which names may be given.

const MOODS: &[&str] = &[
    "amber", "brave", "brisk", "calm", "clever", "coral", "crisp", "deep", "eager", "early",
    "fair", "fleet", "gentle", "glad", "golden", "hardy", "jolly", "keen", "lively", "lucid",
    "mellow", "merry", "misty", "nimble", "noble", "patient", "placid", "quick", "quiet", "rapid",
    "ready", "silver", "sleek", "smart", "steady", "sunny", "swift", "tidal", "tidy", "vivid",
    "warm", "wise", "witty", "zesty",
];

const FISH: &[&str] = &[
    "anchovy", "barbel", "bass", "bleak", "bream", "burbot", "carp", "char", "chub", "cod", "dab",
    "dace", "eel", "flounder", "goby", "grayling", "gudgeon", "gurnard", "haddock", "hake",
    "halibut", "herring", "ide", "lamprey", "ling", "loach", "mackerel", "minnow", "mullet",
    "perch", "pike", "plaice", "pollock", "roach", "rudd", "salmon", "sardine", "shad", "skate",
    "smelt", "sole", "sprat", "sturgeon", "tench", "trout", "tuna", "turbot", "whiting", "wrasse",
    "zander",
];

/// A name out of 64 random bits; `attempt` makes it longer when shorter ones were taken.
pub fn invent(random: u64, attempt: u32) -> String {
    let pick = |words: &'static [&'static str], number: u64| {
        words[usize::try_from(number % words.len() as u64).unwrap_or(0)]
    };
    let name = format!("{}_{}", pick(MOODS, random), pick(FISH, random >> 16));
    if attempt == 0 {
        name
    } else {
        format!("{name}{}", (random >> 32) % 10_u64.pow(attempt.min(9)))
    }
}

/// `[a-zA-Z0-9][a-zA-Z0-9_.-]+`, Docker's rule.
pub fn is_valid(name: &str) -> bool {
    name.len() > 1
        && name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'))
}
