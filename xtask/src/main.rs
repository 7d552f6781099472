//! The developer's command: `cargo xtask setup | demo | test | bench | ci`.

fn main() {
    eprintln!("xtask: no command yet");
    std::process::exit(2);
}
