/* Diagnostics on stderr. Never for errors that a function can return. Any thread. */
#ifndef VMM_LOG_H
#define VMM_LOG_H

enum log_level { LOG_ERROR, LOG_WARNING, LOG_INFO, LOG_DEBUG };

/* Messages above this level are dropped. Set once, before threads start. The default is LOG_WARNING. */
void log_set_level(enum log_level level);

/* One line; a newline is added. While a guest owns the terminal in raw mode, lines end in CR LF (log_set_raw). */
void log_message(enum log_level level, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* Says that stderr is a terminal in raw mode, so that lines need a carriage return. */
void log_set_raw(int raw);

#endif
