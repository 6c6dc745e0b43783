#ifndef PCMRING_LITMUS_H
#define PCMRING_LITMUS_H
/* Run the checker's own tests, print a line for each group; adds to the two counts. */
void litmus_run(int *passed, int *failed);
#endif
