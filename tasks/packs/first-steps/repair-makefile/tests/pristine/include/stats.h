#ifndef STATS_H
#define STATS_H

/* Digits after the point in everything the program prints. */
#define DIGITS 3

double mean(const double *values, int count);
double deviation(const double *values, int count);
double geometric_mean(const double *values, int count);

#endif
