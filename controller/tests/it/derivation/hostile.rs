//! CI configurations that are made to do harm, each at the size that such things have. All of them are to be refused.

use std::fmt::Write as _;

/// What each is, and its text.
pub(crate) fn texts() -> Vec<(&'static str, String)> {
    let mut bomb = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n");
    let mut maps = String::from("a0: &a0 {k: {image: x, script: y}}\n");
    let mut references = String::from("t0: {script: [x]}\n");
    for level in 1..20 {
        let _ = writeln!(bomb, "a{level}: &a{level} [{}]", vec![format!("*a{}", level - 1); 10].join(", "));
        let keys: Vec<String> = (0..10).map(|key| format!("k{key}: *a{}", level - 1)).collect();
        let _ = writeln!(maps, "a{level}: &a{level} {{{}}}", keys.join(", "));
        let inner = vec![format!("!reference [t{}, script]", level - 1); 10].join(", ");
        let _ = writeln!(references, "t{level}: {{script: [{inner}]}}");
    }
    let variables: Vec<String> = (0..2_000).map(|at| format!("V{at}: x")).collect();
    let mut extends = format!(".base: {{variables: {{{}}}}}\n", variables.join(", "));
    for job in 0..4_000 {
        let _ = writeln!(extends, "j{job}: {{extends: .base, image: python, script: pytest}}");
    }
    let mut doubling = String::from("test: {image: a, script: x}\nvariables:\n  V0: 0123456789\n");
    for level in 1..40 {
        let _ = writeln!(doubling, "  V{level}: $V{0}$V{0}", level - 1);
    }
    let job = "test:\n  image: a\n  script: x\n  services:";
    let thousand = vec!["s"; 1_000].join(", ");
    vec![
        ("an alias bomb", bomb),
        ("an alias bomb of jobs", maps),
        ("a bomb of references", references),
        ("extends over and over", extends),
        ("variables that double", doubling),
        ("deep nesting", format!("a: {}", "[".repeat(200_000))),
        ("deep nesting of mappings", format!("a: {}", "{a: ".repeat(200_000))),
        ("deep indentation", (0..1_000).fold(String::new(), |text, depth| format!("{text}{:depth$}a:\n", ""))),
        ("a million services", format!("{job}\n{}", "  - a\n".repeat(1_000_000))),
        ("as many services as a file can hold", format!("{job} [{}a]\n", "a,".repeat(500_000))),
        ("a million services by alias", format!(".s: &s [{thousand}]\n{job} [{}]\n", vec!["*s"; 1_000].join(", "))),
        (
            "too many jobs",
            (0..30_000).fold(String::new(), |text, job| text + &format!("j{job}: {{image: a, script: x}}\n")),
        ),
        ("too many includes", format!("include:\n{}{job} []\n", "  - a.yml\n".repeat(400))),
        ("ten megabytes of comments", "# comment\n".repeat(1_000_000)),
        ("ten megabytes in one value", format!("a: {}\n", "x".repeat(10_000_000))),
    ]
}
