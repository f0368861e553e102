//! Which devices the processes of a group may use, as a program that version 2 of control groups asks.
//!
//! Instructions as in `linux/bpf.h`, the question as in its `struct bpf_cgroup_dev_ctx`: the kind in the lower half of the first
//! word and what is wanted in the upper, then the numbers of the device. The last rule that fits decides; what no rule is
//! about is forbidden.

use oci_spec::runtime::{LinuxDeviceCgroup, LinuxDeviceType};

/// `BPF_DEVCG_DEV_BLOCK`.
const BLOCK: i32 = 1;
/// `BPF_DEVCG_DEV_CHAR`.
const CHAR: i32 = 2;
/// `BPF_DEVCG_ACC_MKNOD`, `_READ` and `_WRITE`.
const ACCESS: [(char, i32); 3] = [('m', 1), ('r', 2), ('w', 4)];
const ACCESS_ALL: i32 = 7;

/// `BPF_LDX | BPF_MEM | BPF_W`: a word of the question into a register.
const LOAD: u8 = 0x61;
/// `BPF_ALU | BPF_AND | BPF_K`.
const AND: u8 = 0x54;
/// `BPF_ALU | BPF_RSH | BPF_K`.
const SHIFT_RIGHT: u8 = 0x74;
/// `BPF_ALU64 | BPF_MOV | BPF_X`.
const COPY: u8 = 0xbf;
/// `BPF_ALU64 | BPF_MOV | BPF_K`.
const SET: u8 = 0xb7;
/// `BPF_JMP | BPF_JNE | BPF_K`.
const UNLESS: u8 = 0x55;
/// `BPF_JMP | BPF_JNE | BPF_X`.
const UNLESS_SAME: u8 = 0x5d;
/// `BPF_JMP | BPF_EXIT`.
const EXIT: u8 = 0x95;

// The verdict, the question, and what was taken from it.
const ANSWER: u8 = 0;
const QUESTION: u8 = 1;
const KIND: u8 = 2;
const WANTED: u8 = 3;
const MAJOR: u8 = 4;
const MINOR: u8 = 5;

/// One instruction, as it lies in memory.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Instruction {
    code: u8,
    /// Destination in the lower half, source in the upper.
    registers: u8,
    offset: i16,
    value: i32,
}

fn instruction(code: u8, to: u8, from: u8, offset: i16, value: i32) -> Instruction {
    Instruction {
        code,
        registers: from << 4 | to,
        offset,
        value,
    }
}

/// The program for these rules, which stand in the order in which they were given.
pub fn program(rules: &[LinuxDeviceCgroup]) -> Vec<Instruction> {
    let mut program = vec![
        instruction(LOAD, KIND, QUESTION, 0, 0),
        instruction(COPY, WANTED, KIND, 0, 0),
        instruction(AND, KIND, 0, 0, 0xffff),
        instruction(SHIFT_RIGHT, WANTED, 0, 0, 16),
        instruction(LOAD, MAJOR, QUESTION, 4, 0),
        instruction(LOAD, MINOR, QUESTION, 8, 0),
    ];
    for rule in rules.iter().rev() {
        let code = answer_by(rule);
        let is_about_all = !code
            .iter()
            .any(|one| matches!(one.code, UNLESS | UNLESS_SAME));
        program.extend(code);
        // The kernel refuses what is never reached.
        if is_about_all {
            return program;
        }
    }
    program.extend(answer(false));
    program
}

fn answer(allowed: bool) -> [Instruction; 2] {
    [
        instruction(SET, ANSWER, 0, 0, i32::from(allowed)),
        instruction(EXIT, 0, 0, 0, 0),
    ]
}

/// Answers if the rule is about the question, else goes on behind it.
fn answer_by(rule: &LinuxDeviceCgroup) -> Vec<Instruction> {
    let mut conditions = Vec::new();
    match rule.typ() {
        Some(LinuxDeviceType::B) => conditions.push(vec![instruction(UNLESS, KIND, 0, 0, BLOCK)]),
        Some(LinuxDeviceType::C) => conditions.push(vec![instruction(UNLESS, KIND, 0, 0, CHAR)]),
        _ => {}
    }
    let letters = rule.access().as_deref().unwrap_or("rwm");
    let those = ACCESS
        .iter()
        .filter(|(letter, _)| letters.contains(*letter));
    let access = those.fold(0, |all, (_, bit)| all | bit);
    if access != ACCESS_ALL {
        // Nothing may be wanted beside it.
        conditions.push(vec![
            instruction(COPY, QUESTION, WANTED, 0, 0),
            instruction(AND, QUESTION, 0, 0, access),
            instruction(UNLESS_SAME, QUESTION, WANTED, 0, 0),
        ]);
    }
    for (register, number) in [(MAJOR, rule.major()), (MINOR, rule.minor())] {
        // Any number is no condition.
        if let Some(number) = number.and_then(|number| i32::try_from(number).ok())
            && number >= 0
        {
            conditions.push(vec![instruction(UNLESS, register, 0, 0, number)]);
        }
    }
    let mut code: Vec<Instruction> = conditions.concat();
    code.extend(answer(rule.allow()));
    let length = code.len();
    for (at, instruction) in code.iter_mut().enumerate() {
        if matches!(instruction.code, UNLESS | UNLESS_SAME) {
            instruction.offset = i16::try_from(length - at - 1).expect("a rule is short");
        }
    }
    code
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::oci::parse_rule;

    /// What the kernel would do.
    fn ask(program: &[Instruction], kind: i32, wanted: i32, major: i32, minor: i32) -> bool {
        let question = [wanted << 16 | kind, major, minor];
        let mut registers = [0_i32; 6];
        let mut at = 0;
        loop {
            let Instruction {
                code,
                registers: both,
                offset,
                value,
            } = program[at];
            let (to, from) = (usize::from(both & 15), usize::from(both >> 4));
            at += 1;
            let jump = usize::try_from(offset).expect("only forward");
            match code {
                LOAD => registers[to] = question[jump / 4],
                COPY => registers[to] = registers[from],
                AND => registers[to] &= value,
                SHIFT_RIGHT => registers[to] >>= value,
                SET => registers[to] = value,
                UNLESS if registers[to] != value => at += jump,
                UNLESS_SAME if registers[to] != registers[from] => at += jump,
                UNLESS | UNLESS_SAME => {}
                EXIT => return registers[0] == 1,
                other => panic!("instruction {other:#x}"),
            }
        }
    }

    #[test]
    fn the_last_rule_that_fits_decides() {
        let mut rules: Vec<_> = ["c *:* m", "c 1:3 rwm", "b 8:* r", "c 1:3 w"]
            .iter()
            .map(|text| parse_rule(text).expect("a rule"))
            .collect();
        let (mknod, read, write) = (1, 2, 4);
        let program_of = program(&rules);
        let may = |kind, wanted, major, minor| ask(&program_of, kind, wanted, major, minor);
        assert!(may(CHAR, mknod, 9, 9) && !may(BLOCK, mknod, 8, 1));
        assert!(may(CHAR, read | write, 1, 3) && !may(CHAR, read, 1, 5));
        assert!(may(BLOCK, read, 8, 200) && !may(BLOCK, read | write, 8, 200));
        rules[3].set_allow(false);
        let denied = program(&rules);
        assert!(!ask(&denied, CHAR, write, 1, 3) && ask(&denied, CHAR, read, 1, 3));
        assert!(!ask(&program(&[]), CHAR, read, 1, 3));
        // Nothing stands behind a rule about everything.
        let mut all = parse_rule("a *:* rwm").expect("a rule");
        all.set_allow(false);
        assert_eq!(program(&[rules[0].clone(), all]), program(&[]));
    }
}
