/* The person's end of COM1: terminal, file, pseudo-terminal or nothing. */
#ifndef CLI_TERMINAL_H
#define CLI_TERMINAL_H

#include <stdbool.h>

#include "vmm/machine.h"

struct error;
struct terminal;

/*
 * Opens what the configuration names and connects it to the machine. With stdio and a terminal on standard input, raw
 * mode begins here and ends in terminal_close(). Before machine_run().
 */
int terminal_open(struct machine *machine, const struct machine_config *config, struct terminal **terminal,
	struct error *err);
/* Gives the terminal back, writes out what is left (waiting a little). After machine_run(). */
void terminal_close(struct terminal *terminal);
/* Gives the terminal back for a while (SIGTSTP), and takes it again. Device lock held. */
void terminal_suspend(struct terminal *terminal);
void terminal_resume(struct terminal *terminal);

#endif
