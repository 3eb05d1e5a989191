//! The kernel itself: its modules, log, names, and what was hooked into it.

pub(in crate::linux) mod boottime;
pub(in crate::linux) mod check_afinfo;
pub(in crate::linux) mod check_fops;
pub(in crate::linux) mod check_idt;
pub(in crate::linux) mod check_syscall;
pub(in crate::linux) mod ebpf;
pub(in crate::linux) mod ftrace;
pub(in crate::linux) mod hidden_modules;
pub(in crate::linux) mod inline_hooks;
pub(in crate::linux) mod kallsyms;
pub(in crate::linux) mod keyboard_notifiers;
pub(in crate::linux) mod kmsg;
pub(in crate::linux) mod kprobes;
pub(in crate::linux) mod lsmod;
pub(in crate::linux) mod module_extract;
pub(in crate::linux) mod module_parameters;
pub(in crate::linux) mod tracepoints;
pub(in crate::linux) mod tty_check;
pub(in crate::linux) mod uname;
