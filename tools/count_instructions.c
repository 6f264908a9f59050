// A plugin of QEMU that prints on stderr, whenever the program calls getpriority, how many instructions it has executed.
//
//   cc -shared -fPIC -O2 -o count.so count_instructions.c
//   qemu-aarch64 -plugin ./count.so PROGRAM

#include <inttypes.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#define GETPRIORITY 141  // on 64-bit ARM
#define ADD_U64 0        // QEMU_PLUGIN_INLINE_ADD_U64

// Version 1 of QEMU's interface, as far as it is used: Debian has no package with its header.
typedef uint64_t qemu_plugin_id_t;
struct qemu_plugin_tb;
void qemu_plugin_register_vcpu_tb_trans_cb(
  qemu_plugin_id_t, void (*)(qemu_plugin_id_t, struct qemu_plugin_tb *));
void qemu_plugin_register_vcpu_tb_exec_inline(struct qemu_plugin_tb *, int, void *, uint64_t);
void qemu_plugin_register_vcpu_syscall_cb(
  qemu_plugin_id_t, void (*)(
    qemu_plugin_id_t, unsigned, int64_t, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t,
    uint64_t));
size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *);
int qemu_plugin_version = 1;

static uint64_t executed;

static void on_translated(qemu_plugin_id_t id, struct qemu_plugin_tb * block)
{
  (void)id;
  qemu_plugin_register_vcpu_tb_exec_inline(block, ADD_U64, &executed, qemu_plugin_tb_n_insns(block));
}

static void on_syscall(
  qemu_plugin_id_t id, unsigned cpu, int64_t number, uint64_t a, uint64_t b, uint64_t c, uint64_t d, uint64_t e,
  uint64_t f, uint64_t g, uint64_t h)
{
  (void)id, (void)cpu, (void)a, (void)b, (void)c, (void)d, (void)e, (void)f, (void)g, (void)h;
  if (number == GETPRIORITY) {
    fprintf(stderr, "executed %" PRIu64 "\n", executed);
  }
}

int qemu_plugin_install(qemu_plugin_id_t id, const void * info, int argc, char ** argv)
{
  (void)info, (void)argc, (void)argv;
  qemu_plugin_register_vcpu_tb_trans_cb(id, on_translated);
  qemu_plugin_register_vcpu_syscall_cb(id, on_syscall);
  return 0;
}
