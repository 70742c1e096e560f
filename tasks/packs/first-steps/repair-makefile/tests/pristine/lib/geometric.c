#include "stats.h"

#include <math.h>

double geometric_mean(const double *values, int count)
{
    double sum = 0;
    for (int i = 0; i < count; i++)
        sum += log(values[i]);
    return exp(sum / count);
}
